"""Saving and loading of a run that nothing is lost in: see `verl_ext.runtime.checkpoints`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import open_dict
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from verl_ext.runtime import checkpoints, files
from verl_ext.runtime.console import show
from verl_ext.runtime.errors import is_process_death, one_line


class SafeCheckpoints:
    """Mixin for verl's trainer; comes before it in the list of base classes."""

    config: Any
    global_steps: int
    total_training_steps: int
    checkpoint_callback: Any

    def _save_checkpoint(self) -> None:
        """verl's, into a folder aside that becomes the checkpoint when it is whole.

        A disk that is full costs this checkpoint, no earlier one, and not the run: unless it was the last step's.
        """
        run_dir = Path(self.config.trainer.default_local_dir)
        aside = run_dir / checkpoints.ASIDE
        try:
            shutil.rmtree(aside, ignore_errors=True)
            with self._saving_aside(aside):
                super()._save_checkpoint()  # type: ignore[misc]
            folder = checkpoints.publish(aside / f"{checkpoints.PREFIX}{self.global_steps}", run_dir)
        except Exception as error:
            if is_process_death(error) or self.global_steps >= self.total_training_steps:
                raise
            show(
                f"ERROR the checkpoint of step {self.global_steps} could not be written: {one_line(error)}. Training "
                "goes on; earlier checkpoints are as they were"
            )
            return
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        if keep := self.config.trainer.get("max_actor_ckpt_to_keep"):
            checkpoints.prune(run_dir, keep=keep)
        self.checkpoint_callback.on_save(
            trainer=self, global_step=self.global_steps, checkpoint_dir=str(folder), async_save=False
        )

    @contextmanager
    def _saving_aside(self, aside: Path) -> Iterator[None]:
        """verl saves where it is told to save a run, removes nothing, and tells nobody."""
        trainer, callback = self.config.trainer, self.checkpoint_callback
        kept = {key: trainer.get(key) for key in ("default_local_dir", "max_actor_ckpt_to_keep")}
        with open_dict(trainer):
            trainer.default_local_dir, trainer.max_actor_ckpt_to_keep = str(aside), None
        self.checkpoint_callback = CheckpointCallback(self.config)
        try:
            yield
        finally:
            self.checkpoint_callback = callback
            with open_dict(trainer):
                trainer.update(kept)

    def _load_checkpoint(self) -> None:
        """verl's, from the newest checkpoint that is whole and can be read.

        Raises:
            RuntimeError: there are checkpoints, and none of them is whole.
        """
        run_dir = Path(self.config.trainer.default_local_dir)
        if self.config.trainer.resume_mode != "auto" or not checkpoints.saved(run_dir):
            super()._load_checkpoint()  # type: ignore[misc]
            return
        below: int | None = None
        unreadable: Exception | None = None
        while True:
            folder, damaged = checkpoints.newest(run_dir, below=below)
            for path, problem in damaged.items():
                show(f"WARNING {path} is damaged ({problem}): the checkpoint before it is taken")
            if folder is None:
                raise unreadable or RuntimeError(
                    f"no checkpoint in {run_dir} is whole; set trainer.resume_mode=disable to begin anew"
                )
            if change := checkpoints.changed(folder):
                show(f"WARNING {folder} is damaged ({change}): the checkpoint before it is taken")
                below = int(checkpoints.step_of(folder))
                continue
            files.write_text(run_dir / checkpoints.MARK, checkpoints.step_of(folder))
            try:
                super()._load_checkpoint()  # type: ignore[misc]
                return
            except Exception as error:
                if is_process_death(error):
                    raise
                unreadable, below = unreadable or error, int(checkpoints.step_of(folder))
                show(f"WARNING {folder} cannot be read ({one_line(error)}): the checkpoint before it is tried")
