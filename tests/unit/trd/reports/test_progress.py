import math

import numpy as np
import pytest

from recipe.trd.reports import progress
from verl_ext.runtime.console import MARKER

TRD_METRICS = {
    "actor/trd/divergence": 0.12345,
    "actor/loss": 9.0,
    "actor/grad_norm": np.float32(0.4211),
    "actor/lr": 1e-6,
    "trd/rewrite_accept_rate": 0.781,
    "trd/y_o_acc": 0.412,
    "trd/y_r_acc": 0.556,
    "critic/score/mean": 0.4,
    "response_length/mean": 512.4,
    "perf/total_num_tokens": 110_000,
    "perf/time_per_step": 20.0,
    "perf/throughput": 1.0,
}


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines_of(capsys):
    """Lines printed for a run whose steps take the given seconds, marker removed."""

    def run(durations: list[float], *, metrics: dict | None = None, start_step: int = 0, total_steps: int = 200):
        clock = Clock()
        shown = progress.Progress(total_steps=total_steps, start_step=start_step, clock=clock)
        for step, duration in enumerate(durations, start=start_step + 1):
            clock.now += duration
            shown.update(step, metrics or {})
        lines = capsys.readouterr().out.splitlines()
        assert all(line.startswith(MARKER) for line in lines)
        return [line.removeprefix(MARKER) for line in lines]

    return run


def test_line_of_a_trd_step(lines_of):
    [line] = lines_of([23.0], metrics=TRD_METRICS, start_step=11)
    assert line == (
        "step  12/200   6%  1h12m left  23s  div 0.123  accept 78%  y_o 41%->y_r 56%  grad 0.42  5.5k tok/s  lr 1e-06"
    )


def test_line_of_a_grpo_step_has_the_score_and_no_rewriting(lines_of):
    metrics = {"actor/pg_loss": -0.0123, "critic/score/mean": 0.4375, "response_length/mean": 512.4}
    assert lines_of([2.0], metrics=metrics) == [
        "step   1/200   0%  6m38s left  2.0s  loss -0.0123  score 0.438  len 512"
    ]


def test_learning_rate_is_shown_when_it_moves_and_the_line_fits_otherwise(lines_of):
    first, second = lines_of([23.0, 23.0], metrics=TRD_METRICS, start_step=11)
    assert "lr 1e-06" in first
    assert "lr" not in second
    assert len(second) <= 100


def test_missing_metrics_and_other_types_are_left_out(lines_of):
    metrics = {"actor/loss": None, "actor/grad_norm": "big", "actor/lr": [1e-6]}
    assert lines_of([2.0], metrics=metrics) == ["step   1/200   0%  6m38s left  2.0s"]


def test_nan_is_shown(lines_of):
    assert "loss nan" in lines_of([1.0], metrics={"actor/loss": math.nan})[0]


def test_time_left_forgets_the_warm_up_and_averages_the_rest(lines_of):
    lines = lines_of([60.0, 2.0, 4.0], total_steps=13)
    assert ["12m00s left" in lines[0], "22s left" in lines[1], "30s left" in lines[2]] == [True] * 3


def test_time_left_follows_recent_steps(lines_of):
    assert "20s left" in lines_of([1.0] * 30 + [2.0] * 20, total_steps=60)[-1]


def test_last_step_is_complete(lines_of):
    assert "step 3/3  100%  0s left" in lines_of([1.0] * 3, total_steps=3)[-1]


def test_stage_tells_the_seconds_since_launch(capsys, monkeypatch):
    monkeypatch.setattr(progress.time, "time", lambda: 1042.4)
    progress.stage("starting the teacher server", launched_at=1000.0)
    assert capsys.readouterr().out == f"{MARKER}[   42 s] starting the teacher server\n"


@pytest.mark.parametrize(("step", "when"), [(0, "before training"), (20, "after step 20")])
def test_validation_is_in_points(capsys, step, when):
    progress.validation(step=step, accuracy=0.6127, standard_error=0.0134, num_problems=1319)
    assert capsys.readouterr().out == f"{MARKER}held-out accuracy {when}: 61.3 +/- 1.3 % (1319 problems)\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (200, "3m20s"), (4320, "1h12m"), (183_600, "2d03h")],
)
def test_format_seconds(seconds, text):
    assert progress.format_seconds(seconds) == text


def test_lines_are_ascii_for_any_terminal(lines_of):
    assert lines_of([1.0], metrics=TRD_METRICS)[0].isascii()
