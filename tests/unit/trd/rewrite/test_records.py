"""Metrics of a step, computed by hand from four samples."""

import json
import math

import pytest

from recipe.trd.rewrite.records import SampleRecord, busy_seconds, step_metrics
from recipe.trd.rewrite.verdict import Verdict

NAMES_WITHOUT_A_MEAN = {"trd/y_r_acc", "trd/y_r_length/mean"}


def record(**changes):
    """An accepted rewrite that turned a wrong y_o of three tokens into a right y_r of two."""
    base = SampleRecord(
        verdict=Verdict.ACCEPTED,
        trained_on="y_r",
        y_o_ids=[5, 6, 2],
        y_r_ids=[7, 2],
        y_o_acc=0.0,
        num_cut=0,
        rolled_out=10.0,
        rewrite_span=(10.0, 12.0),
        teacher_prompt_ids=[1],
        y_r_acc=1.0,
    )
    return {**base.as_dict(), **changes}


@pytest.fixture
def step():
    """Wrong to right; right to wrong; unchanged; and one that failed and was masked."""
    return [
        record(rolled_out=10.0, rewrite_span=(10.0, 12.0)),
        record(
            y_o_acc=1.0, y_r_acc=0.0, num_cut=4, rolled_out=11.0, rewrite_span=(11.0, 15.0), score_span=(15.0, 16.0)
        ),
        record(y_r_ids=[5, 6, 2], y_o_acc=1.0, rolled_out=13.0, rewrite_span=(13.0, 14.0)),
        record(
            verdict=Verdict.FAILED,
            trained_on="none",
            y_r_ids=None,
            y_r_acc=None,
            rolled_out=20.0,
            rewrite_span=(20.0, 21.0),
            score_span=(23.0, 24.0),
        ),
    ]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], 0),
        ([(1, 3)], 2),
        ([(1, 3), (5, 6)], 3),
        ([(1, 3), (2, 6)], 5),
        ([(1, 9), (2, 3), (4, 5)], 8),
        ([(5, 6), (1, 3)], 3),
        ([(1, 3), (3, 4)], 3),
        ([(1, 3), (1, 3)], 2),
        ([(2, 2)], 0),
        ([(1.76e9, 1.76e9 + 0.25)], 0.25),
    ],
)
def test_busy_seconds_is_the_length_of_the_union(spans, expected):
    assert busy_seconds(spans) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("trd/rewrite_accept_rate", 3 / 4),
        ("trd/masked_frac", 1 / 4),
        ("trd/y_o_acc", 2 / 4),
        ("trd/y_r_acc", 2 / 3),
        ("trd/wrong_to_right", 1 / 4),
        ("trd/right_to_wrong", 1 / 4),
        ("trd/unchanged_frac", 1 / 4),
        ("trd/y_o_cut_tokens/mean", 1.0),
        ("trd/y_o_length/mean", 3.0),
        ("trd/y_r_length/mean", (2 + 2 + 3) / 3),
        ("timing_s/rewrite", 5 + 1),  # 10..15 and 20..21
        ("timing_s/teacher", 6 + 1 + 1),  # 10..16, 20..21 and 23..24
        ("trd/rewrite_overlap_frac", 5 / 6),  # the last rollout ended at 20
        ("trd/verdict/accepted", 3 / 4),
        ("trd/verdict/failed", 1 / 4),
        ("trd/verdict/overlong", 0.0),
    ],
)
def test_metrics_by_hand(step, name, expected):
    assert step_metrics(step)[name] == pytest.approx(expected)


def test_order_of_samples_does_not_matter(step):
    assert step_metrics(step[::-1]) == pytest.approx(step_metrics(step))


def test_every_verdict_is_counted_and_they_sum_to_one(step):
    rates = {name: value for name, value in step_metrics(step).items() if name.startswith("trd/verdict/")}
    assert set(rates) == {f"trd/verdict/{verdict}" for verdict in Verdict}
    assert sum(rates.values()) == pytest.approx(1)


def test_rewrites_that_all_wait_for_the_last_rollout_do_not_overlap():
    metrics = step_metrics([record(rolled_out=9.0, rewrite_span=(9.0, 9.5)), record(rolled_out=9.0)])
    assert metrics["trd/rewrite_overlap_frac"] == 0
    assert metrics["timing_s/rewrite"] == pytest.approx(2.5)


def test_partial_credit_below_one_is_wrong():
    metrics = step_metrics([record(y_o_acc=0.5, y_r_acc=1.0), record(y_o_acc=1.0, y_r_acc=0.9)])
    assert (metrics["trd/wrong_to_right"], metrics["trd/right_to_wrong"]) == (0.5, 0.5)


def test_all_rejected():
    rejected = {"verdict": Verdict.UNFINISHED, "trained_on": "y_o", "y_r_acc": None}
    metrics = step_metrics([record(**rejected), record(**rejected, y_o_acc=1.0)])
    assert metrics["trd/rewrite_accept_rate"] == 0
    assert metrics["trd/y_o_acc"] == 0.5
    assert metrics["trd/wrong_to_right"] == metrics["trd/right_to_wrong"] == 0
    assert metrics["trd/y_r_length/mean"] == 2  # what the teacher wrote, though nobody trains on it
    assert "trd/y_r_acc" not in metrics


def test_means_over_no_sample_are_left_out_and_nothing_is_nan():
    nothing = {"verdict": Verdict.PROMPT_TOO_LONG, "trained_on": "none", "y_r_ids": None, "y_r_acc": None}
    metrics = step_metrics([record(**nothing)])
    assert not NAMES_WITHOUT_A_MEAN & set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())


def test_without_a_reward_there_is_no_accuracy():
    metrics = step_metrics([record(y_o_acc=None, y_r_acc=None)] * 2)
    assert not {"trd/y_o_acc", "trd/y_r_acc"} & set(metrics)
    assert metrics["trd/wrong_to_right"] == metrics["trd/right_to_wrong"] == 0
    assert metrics["trd/rewrite_accept_rate"] == 1


def test_rewrites_that_took_no_time_divide_by_nothing():
    metrics = step_metrics([record(rewrite_span=(10.0, 10.0))])
    assert (metrics["timing_s/rewrite"], metrics["trd/rewrite_overlap_frac"]) == (0, 0)


def without_rewrite(**changes):
    """A sample of a method on y_o: the teacher scores it, or not even that."""
    base = SampleRecord(y_o_ids=[5, 6, 2], rolled_out=10.0, y_o_acc=1.0, score_span=(10.0, 12.0))
    return {**base.as_dict(), **changes}


def test_a_new_record_says_that_y_o_is_trained_on_and_nothing_was_rewritten():
    record = SampleRecord(y_o_ids=[5, 2], rolled_out=10.0)
    assert (record.trained_on, record.verdict, record.y_r_ids, record.rewrite_span) == ("y_o", None, None, None)


def test_methods_on_y_o_say_nothing_of_rewrites():
    steps = [
        without_rewrite(),
        without_rewrite(y_o_ids=[7], y_o_acc=0.0, score_span=(11.0, 15.0)),
        without_rewrite(trained_on="none", score_span=None),
        without_rewrite(score_span=(20.0, 21.0)),
    ]
    metrics = step_metrics(steps)
    expected = {
        "trd/masked_frac": 1 / 4,
        "trd/y_o_acc": 3 / 4,
        "trd/y_o_length/mean": (3 + 1 + 3 + 3) / 4,
        "timing_s/teacher": 5 + 1,  # 10..15 and 20..21
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert [name for name in metrics if "rewrite" in name or "y_r" in name or "verdict" in name] == []


def test_teacher_in_the_trainer_takes_no_time_of_a_server():
    metrics = step_metrics([without_rewrite(score_span=None, y_o_acc=None)])
    assert metrics["timing_s/teacher"] == 0
    assert "trd/y_o_acc" not in metrics


def test_records_survive_the_way_through_json():
    steps = [record(), record(verdict=Verdict.EMPTY, trained_on="y_o", y_r_ids=None, y_r_acc=None), record()]
    assert step_metrics(json.loads(json.dumps(steps))) == pytest.approx(step_metrics(steps))


def evidence(**changes):
    known = {"is_copy": False, "repeated_frac": 0.0, "length_ratio": 2.0, "meta_phrases": [], "copied_frac": None}
    return {**known, "student_log_prob": None, "has_answer": None, "acc": None, **changes}


def test_what_is_known_of_rewrites_is_averaged_over_those_of_which_it_is_known():
    steps = [
        record(evidence=evidence(meta_phrases=["your attempt"], student_log_prob=-1.0), num_attempts=3),
        record(evidence=evidence(repeated_frac=0.5, length_ratio=1.0, student_log_prob=-2.0), num_attempts=1),
        record(evidence=evidence(copied_frac=0.4), num_attempts=1, num_thought_tokens=9),
        record(verdict=Verdict.FAILED, y_r_ids=None, num_attempts=1),
    ]
    metrics = step_metrics(steps)
    expected = {
        "trd/rewrite_meta_frac": 1 / 3,
        "trd/rewrite_repeated_frac": 0.5 / 3,
        "trd/rewrite_length_ratio/mean": 5 / 3,
        "trd/reference_copied_frac": 0.4,
        "trd/y_r_student_log_prob/mean": -1.5,
        "trd/rewrite_attempts/mean": 6 / 4,
        "trd/rewrite_thought_tokens/mean": 9 / 4,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_a_step_in_which_nothing_had_to_be_rewritten():
    right = {"verdict": Verdict.NOT_NEEDED, "trained_on": "y_o", "y_r_ids": None, "y_r_acc": None, "y_o_acc": 1.0}
    metrics = step_metrics([record(**right, rewrite_span=None)] * 2)
    assert metrics["trd/verdict/not_needed"] == 1
    assert "trd/rewrite_accept_rate" not in metrics
    assert (metrics["timing_s/rewrite"], metrics["trd/rewrite_overlap_frac"]) == (0, 0)
    mixed = step_metrics([record(**right, rewrite_span=None), record()])
    assert mixed["trd/rewrite_accept_rate"] == 1  # of those that were asked for
