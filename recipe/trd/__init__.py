"""Trajectory-Refined Distillation: the student learns the teacher's distribution on rewritten trajectories."""

import logging
import os

__version__ = "0.1.0"

# As verl's own loggers: vLLM raises the root's level to ERROR in every process that imports it.
logging.getLogger(__name__).setLevel(os.getenv("VERL_LOGGING_LEVEL", "WARN"))
