"""Rules of the `trd` node: which values are refused, and that the message names the key and a way out."""

import re
from dataclasses import FrozenInstanceError, replace

import pytest
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass

from recipe.trd.schema import TrdConfig

TRD_OPD = {
    "_target_": "recipe.trd.schema.TrdConfig",
    "method": "trd_opd",
    "trajectory": "y_r",
    "teacher": {
        "_target_": "recipe.trd.schema.TeacherConfig",
        "weights": "external",
        "context": "refine",
        "scorer": "generation",
    },
    "rewrite": {
        "_target_": "recipe.trd.schema.RewriteConfig",
        "template": "tiny_refine",
        "max_prompt_length": 128,
        "max_response_length": 64,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "fallback": "y_o",
    },
    "objective": {
        "_target_": "recipe.trd.schema.ObjectiveConfig",
        "divergence": "forward_kl",
        "support": "teacher_topk",
        "top_k": 64,
    },
    "poll_interval_s": 0.1,
    "health_interval_s": 10,
}
OPD = {
    "trajectory": "y_o",
    "teacher.context": "vanilla",
    "teacher.scorer": "prefill",
    "objective.divergence": "sampled_kl",
}
GRPO = {**OPD, "teacher.weights": "none", "objective.divergence": "none"}


def build(changes):
    """The node as verl builds it: Hydra instantiates every `_target_`."""
    config = OmegaConf.create(TRD_OPD)
    for key, value in changes.items():
        OmegaConf.update(config, key, value, force_add=True)
    return omega_conf_to_dataclass(config)


def refusal(changes):
    """The message of the ValueError behind whatever Hydra makes of it."""
    with pytest.raises(Exception, match=r".+") as caught:
        build(changes)
    error = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert isinstance(error, ValueError), error
    return str(error)


@pytest.mark.parametrize(
    ("changes", "upstream"), [({}, False), (OPD, True), (GRPO, True)], ids=["trd_opd", "opd", "grpo"]
)
def test_methods_are_valid_and_know_whose_path_they_take(changes, upstream):
    config = build(changes)
    assert isinstance(config, TrdConfig)
    assert config.is_upstream is upstream


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("trajectory", "y_star", "y_o, y_r"),
        ("teacher.weights", "internal", "external, none"),
        ("teacher.context", "y_o", "refine, vanilla"),
        ("teacher.scorer", "server", "generation, prefill"),
        ("rewrite.fallback", "drop", "y_o, mask"),
        ("objective.divergence", "reverse_kl", "forward_kl, sampled_kl, none"),
        ("objective.support", "full", "teacher_topk, sampled"),
    ],
)
def test_unknown_word_is_refused_with_those_that_are_known(key, value, allowed):
    assert refusal({key: value}) == f"trd.{key}={value!r} is not one of {allowed}"


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("rewrite.max_prompt_length", 0, "at least 1"),
        ("rewrite.max_response_length", 0, "at least 1"),
        ("rewrite.temperature", -0.1, "in [0, 2]"),
        ("rewrite.temperature", 2.1, "in [0, 2]"),
        ("rewrite.top_p", 0, "in (0, 1]"),
        ("rewrite.top_p", 1.01, "in (0, 1]"),
        ("rewrite.top_k", 0, "-1 (all tokens) or at least 1"),
        ("rewrite.top_k", -2, "-1 (all tokens) or at least 1"),
        ("objective.top_k", 0, "at least 1"),
        ("poll_interval_s", 0, "more than 0"),
        ("health_interval_s", -1, "more than 0"),
    ],
)
def test_number_out_of_range_is_refused_with_its_range(key, value, rule):
    assert refusal({key: value}) == f"trd.{key}={value} must be {rule}"


@pytest.mark.parametrize(
    ("key", "value"),
    [("rewrite.temperature", 0), ("rewrite.temperature", 2), ("rewrite.top_p", 0.01), ("rewrite.top_k", 1)],
)
def test_ends_of_a_range_are_inside(key, value):
    assert OmegaConf.select(OmegaConf.create(dict(build({key: value}).rewrite)), key.split(".")[1]) == value


@pytest.mark.parametrize(
    ("changes", "keys", "remedy"),
    [
        (
            {"teacher.weights": "none"},
            ["trd.objective.divergence='forward_kl'", "trd.teacher.weights='none'"],
            "choose the method by its name, method=...",
        ),
        (
            {"objective.divergence": "none"},
            ["trd.objective.divergence='none'", "trd.teacher.weights='external'"],
            "choose the method by its name, method=...",
        ),
        (
            {**OPD, "trajectory": "y_r"},
            ["trd.trajectory=y_r", "trd.objective.divergence='sampled_kl'"],
            "set trd.objective.divergence=forward_kl or trd.trajectory=y_o",
        ),
        (
            {"trajectory": "y_o"},
            ["trd.trajectory=y_o", "trd.objective.divergence=forward_kl"],
            "set trd.trajectory=y_r, or method=opd",
        ),
        (
            {"teacher.context": "vanilla"},
            ["trd.teacher.scorer=generation", "refine, not vanilla"],
            "set trd.teacher.context=refine or trd.teacher.scorer=prefill",
        ),
    ],
    ids=["divergence-no-teacher", "teacher-no-divergence", "y_r-sampled", "y_o-forward-kl", "scorer-context"],
)
def test_settings_that_contradict_each_other_are_refused_with_a_remedy(changes, keys, remedy):
    message = refusal(changes)
    assert all(key in message for key in keys), message
    assert remedy in message
    assert "\n" not in message


def test_vanilla_context_is_allowed_with_a_second_pass():
    assert build({"teacher.context": "vanilla", "teacher.scorer": "prefill"}).teacher.context == "vanilla"


@pytest.mark.parametrize("key", ["methd", "teacher.weight", "rewrite.temprature", "objective.topk"])
def test_unknown_key_is_refused_by_its_name(key):
    with pytest.raises(Exception, match=re.escape(key.split(".")[-1])):
        build({key: 1})


@pytest.mark.parametrize("key", ["method", "rewrite.template", "objective.top_k"])
def test_there_is_no_default_outside_the_yaml(key):
    node, _, name = key.rpartition(".")
    config = OmegaConf.create(TRD_OPD)
    del (OmegaConf.select(config, node) if node else config)[name]
    with pytest.raises(Exception, match=name):
        omega_conf_to_dataclass(config)


def test_values_cannot_be_changed_afterwards():
    config = build({})
    with pytest.raises(FrozenInstanceError):
        config.rewrite.fallback = "mask"
    assert replace(config.rewrite, fallback="mask").fallback == "mask"
