"""Save and stop when the scheduler asks: what a job does with the signal that comes before its time limit.

The launcher turns the signal into a file (`scripts/slurm/job.sh`), which every node sees. verl's trainer saves every
`trainer.save_freq` steps and asks nobody in between, so a thread looks for the file and makes the next step one that
is saved; verl then calls back, and the run ends after that step as if it had been the last: metrics, dumps and
checkpoint are complete, and a run that resumes goes on with the step after it.

Chosen with `trainer.checkpoint_callback_class=recipe.trd.training.preemption.StopOnRequest`.
"""

import os
import threading
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from verl_ext.runtime.console import show

STOP_FILE = "TRD_STOP_FILE"
"""Environment variable of every process of a job: the file whose existence is the request."""

INTERVAL_S = 1.0
"""Pause between two looks at the file, s; it may lie on a network file system."""


def stopped_file(stop_file: Path) -> Path:
    """Where a run that stopped on request notes its last step; a run that went to its end leaves no such file."""
    return stop_file.with_name(f"{stop_file.name}ped")


class StopOnRequest(CheckpointCallback):
    """verl's callback after a checkpoint; built by the trainer, in its process. Without `TRD_STOP_FILE` it is idle."""

    def __init__(self, config: DictConfig) -> None:
        """Start looking.

        Args:
            config: the trainer's own configuration, not a copy: `trainer.save_freq` is set to 1 on request.
        """
        super().__init__(config)
        path = os.environ.get(STOP_FILE)
        self._stop_file = Path(path) if path else None
        self._requested = threading.Event()
        if self._stop_file is not None:
            threading.Thread(target=self._look, name="stop-on-request", daemon=True).start()

    def _look(self) -> None:
        assert self._stop_file is not None
        while not self._stop_file.exists():
            time.sleep(INTERVAL_S)
        show("asked to stop: saving after this step")
        self.config.trainer.save_freq = 1
        self._requested.set()

    def on_save(
        self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **kwargs: Any
    ) -> None:
        """Make the step that was just saved the last one, if there was a request and it is not the last anyway."""
        if self._stop_file is None or not self._requested.is_set() or global_step >= trainer.total_training_steps:
            return
        # verl compares this with the next step's number, once everything about this step is written.
        trainer.total_training_steps = global_step
        stopped_file(self._stop_file).write_text(f"{global_step}\n", encoding="utf-8")
        show(f"stopping after step {global_step}, whose checkpoint is in {checkpoint_dir}; the same command resumes")
