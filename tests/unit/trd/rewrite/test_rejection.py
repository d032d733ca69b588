"""Criteria of `trd.rewrite.reject`: each alone, their order, and that the published method rejects nothing."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass

from recipe.trd.rewrite.rejection import CRITERIA, Evidence, first_reason, gather
from recipe.trd.rewrite.verdict import Verdict

CONFIGS = Path(__file__).parents[4] / "configs"
BAD = Evidence(
    is_copy=True,
    repeated_frac=0.9,
    length_ratio=4.0,
    meta_phrases=["your attempt"],
    copied_frac=0.8,
    student_log_prob=-5.0,
    has_answer=False,
    acc=0.0,
)
GOOD = Evidence(
    is_copy=False,
    repeated_frac=0.0,
    length_ratio=1.0,
    meta_phrases=[],
    copied_frac=0.0,
    student_log_prob=-0.1,
    has_answer=True,
    acc=1.0,
)
UNKNOWN = replace(BAD, copied_frac=None, student_log_prob=None, has_answer=None, acc=None)
SETTINGS = {
    Verdict.COPY: {"copy": True},
    Verdict.REPETITIVE: {"repeated_frac_above": 0.5},
    Verdict.LENGTH_RATIO: {"length_ratio_above": 3.0},
    Verdict.META: {"meta": True},
    Verdict.LEAK: {"copied_frac_above": 0.5},
    Verdict.UNLIKELY: {"student_log_prob_below": -2.0},
    Verdict.NO_ANSWER: {"no_answer": True},
    Verdict.WRONG: {"wrong": True},
}


def reject_of(**changes):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("trd_trainer").trd.rewrite.reject
    OmegaConf.set_readonly(config, False)
    return omega_conf_to_dataclass(OmegaConf.merge(config, changes))


def test_every_criterion_has_a_setting_here():
    assert [verdict for verdict, _ in CRITERIA] == list(SETTINGS)
    used = {key for changes in SETTINGS.values() for key in changes} | {"unfinished", "length_ratio_below"}
    assert used == {field.name for field in fields(reject_of()) if not field.name.startswith("_")}


def test_the_published_method_rejects_nothing_that_is_finished():
    assert first_reason(BAD, reject_of()) is Verdict.ACCEPTED


@pytest.mark.parametrize("verdict", SETTINGS)
def test_one_criterion_alone(verdict):
    reject = reject_of(**SETTINGS[verdict])
    assert first_reason(BAD, reject) is verdict
    assert first_reason(GOOD, reject) is Verdict.ACCEPTED


@pytest.mark.parametrize("verdict", [Verdict.LEAK, Verdict.UNLIKELY, Verdict.NO_ANSWER, Verdict.WRONG])
def test_what_is_not_known_rejects_nothing(verdict):
    assert first_reason(UNKNOWN, reject_of(**SETTINGS[verdict])) is Verdict.ACCEPTED


def test_the_first_that_holds_is_the_verdict():
    rest = dict(SETTINGS)
    while rest:
        everything = {key: value for changes in rest.values() for key, value in changes.items()}
        assert first_reason(BAD, reject_of(**everything)) is next(iter(rest))
        rest.pop(next(iter(rest)))


def test_bounds_are_not_reached_by_values_that_equal_them():
    at = replace(GOOD, repeated_frac=0.5, length_ratio=2.0, student_log_prob=-2.0)
    low = reject_of(repeated_frac_above=0.5, length_ratio_below=2.0, student_log_prob_below=-2.0)
    assert first_reason(at, low) is Verdict.ACCEPTED
    assert first_reason(replace(at, length_ratio=1.9), low) is Verdict.LENGTH_RATIO


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeated_frac_above": 1.0}, r"trd\.rewrite\.reject\.repeated_frac_above=1\.0 must be in \[0, 1\)"),
        ({"copied_frac_above": -0.1}, r"copied_frac_above=-0\.1 must be"),
        ({"length_ratio_below": 0}, r"length_ratio_below=0 must be more than 0"),
        (
            {"length_ratio_below": 2.0, "length_ratio_above": 1.0},
            r"length_ratio_above=1\.0 must be more than the lower",
        ),
        ({"student_log_prob_below": 0.5}, r"student_log_prob_below=0\.5 must be less than 0"),
    ],
)
def test_bounds_that_make_no_sense(changes, message):
    with pytest.raises(Exception, match=message):
        reject_of(**changes)


def test_evidence_by_hand():
    y_star_ids = list(range(100, 120))
    known = gather(
        [1, 2, *y_star_ids[:10]],
        y_o_ids=[1, 2, 3, 4],
        y_star_ids=y_star_ids,
        y_r_text="Your attempt was wrong.",
        problem="12+34=?",
    )
    assert known == Evidence(
        is_copy=False, repeated_frac=0, length_ratio=3, meta_phrases=["your attempt"], copied_frac=10 / 12
    )
    same = gather([5, 6], y_o_ids=[5, 6], y_star_ids=None, y_r_text="46", problem="")
    assert (same.is_copy, same.copied_frac, same.meta_phrases) == (True, None, [])
