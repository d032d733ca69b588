"""What the trainer's mixin reports."""

import math
from types import SimpleNamespace

import pytest

from recipe.trd.reports import progress
from recipe.trd.reports.reporting import Reporting, clip_ratios


class Trainer:
    val_dataset = range(4)
    global_steps = 3

    def _validate(self):
        return {"val-core/set/acc/mean@1": 0.75, "val-aux/set/score/mean@1": 0.5}


class ReportingTrainer(Reporting, Trainer):
    pass


def test_validation_is_reported_with_its_binomial_standard_error(monkeypatch):
    said = []
    monkeypatch.setattr(progress, "validation", lambda **numbers: said.append(numbers))
    assert ReportingTrainer()._validate() == Trainer()._validate()
    # sqrt(0.75 * 0.25 / 4)
    error = pytest.approx(0.21650635)
    assert said == [{"step": 3, "accuracy": 0.75, "standard_error": error, "num_problems": 4}]


def tag(prompt, response, **more):
    return {"prompt_len": prompt, "response_len": response, **more}


def test_clip_ratios_are_of_the_limits_and_not_of_the_longest_sample():
    tags = [tag(3, 8), tag(4, 5), tag(2, 0), tag(4, 8, is_padding=True)]
    assert clip_ratios(tags, max_prompt_length=4, max_response_length=8) == {
        "prompt_length/clip_ratio": pytest.approx(1 / 3),
        "response_length/clip_ratio": pytest.approx(1 / 3),
        "response_length_non_aborted/clip_ratio": pytest.approx(1 / 2),
    }
    assert set(clip_ratios(tags, max_prompt_length=9, max_response_length=9).values()) == {0.0}
    assert clip_ratios([tag(4, 8, is_padding=True)], max_prompt_length=4, max_response_length=8) == {}


def test_updates_that_were_skipped_are_counted_until_there_are_too_many(capsys):
    trainer = ReportingTrainer()
    trainer.config = SimpleNamespace(trd=SimpleNamespace(faults=SimpleNamespace(max_skipped_updates=2)))
    counts = []
    for grad_norm in (1.0, math.nan, 0.5, math.inf):
        metrics = {"actor/grad_norm": grad_norm}
        trainer._count_skipped(metrics)
        counts.append(metrics["trd/skipped_updates"])
    assert counts == [0, 1, 1, 2]
    assert capsys.readouterr().out.count("its update was skipped") == 2
    with pytest.raises(RuntimeError, match=r"not finite in 2 steps in a row \(trd\.faults\.max_skipped_updates\)"):
        trainer._count_skipped({"actor/grad_norm": math.nan})
    no_update = {}
    trainer._count_skipped(no_update)
    assert no_update == {}
