"""Trajectory-Refined Distillation: the student learns the teacher's distribution on rewritten trajectories."""

import importlib
import logging
import os
from types import ModuleType

__version__ = "0.1.0"

# As verl's own loggers: vLLM raises the root's level to ERROR in every process that imports it.
logging.getLogger(__name__).setLevel(os.getenv("VERL_LOGGING_LEVEL", "WARN"))

_MOVED = {"reward": "recipe.trd.rewards.math_reward", "code_reward": "recipe.trd.rewards.code_reward"}
"""Modules that users' scripts import by an earlier name."""


def __getattr__(name: str) -> ModuleType:
    if name in _MOVED:
        return importlib.import_module(_MOVED[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
