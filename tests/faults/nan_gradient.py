"""Puts a NaN into a gradient when a file in FAULTS_DIR says so; verl imports it in every process (`external_lib`)."""

import os
from pathlib import Path

from verl_ext.engine.distillation import DistillationEngine

_step = DistillationEngine.optimizer_step


def optimizer_step(self):
    flag = Path(os.environ["FAULTS_DIR"]) / "nan"
    if flag.exists():
        flag.unlink()
        parameter = next(parameter for parameter in self.module.parameters() if parameter.grad is not None)
        local = getattr(parameter.grad, "_local_tensor", parameter.grad)
        local.view(-1)[0] = float("nan")
    return _step(self)


DistillationEngine.optimizer_step = optimizer_step
