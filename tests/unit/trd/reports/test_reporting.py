"""What the trainer's mixin reports."""

import pytest

from recipe.trd.reports import progress
from recipe.trd.reports.reporting import Reporting


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
