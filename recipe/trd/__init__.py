"""Trajectory-Refined Distillation: the student learns the teacher's distribution on rewritten trajectories."""

__version__ = "0.1.0"
