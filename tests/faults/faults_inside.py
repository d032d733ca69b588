"""Faults that a process does to itself when a file in FAULTS_DIR says so; verl imports it in every process
(`external_lib`). `nan`: a NaN in a gradient; `full`: the disk is full after the beginning of a checkpoint's file."""

import errno
import os
from pathlib import Path

import torch

from verl_ext.engine.distillation import DistillationEngine

_step, _save = DistillationEngine.optimizer_step, torch.save


def _takes_up(fault):
    flag = Path(os.environ["FAULTS_DIR"]) / fault
    if not flag.exists():
        return False
    flag.unlink()
    return True


def optimizer_step(self):
    if _takes_up("nan"):
        parameter = next(parameter for parameter in self.module.parameters() if parameter.grad is not None)
        local = getattr(parameter.grad, "_local_tensor", parameter.grad)
        local.view(-1)[0] = float("nan")
    return _step(self)


def save(obj, f, *args, **kwargs):
    if isinstance(f, str | os.PathLike) and "optim" in Path(f).name and _takes_up("full"):
        Path(f).write_bytes(bytes(1000))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(f))
    return _save(obj, f, *args, **kwargs)


DistillationEngine.optimizer_step, torch.save = optimizer_step, save
