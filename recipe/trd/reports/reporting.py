"""Adds progress lines to verl's trainer: stages of the start, each step, each validation. Training is unchanged."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transfer_queue import KVBatchMeta

from recipe.trd.reports import progress, provenance
from recipe.trd.reports.standard_error import binomial_standard_error
from verl_ext.runtime.console import show

LAUNCHED_AT = "TRD_LAUNCHED_AT"
"""Environment variable with the Unix time of the launch, set by `recipe.trd.main`."""


_launched_at = float(os.environ.get(LAUNCHED_AT, time.time()))


def seconds_since_launch() -> float:
    """Seconds since the user's command began; since this process began where the launch is not known."""
    return time.time() - _launched_at


def stage(text: str) -> None:
    """Say what the start-up is doing, with the seconds since launch."""
    progress.stage(text, launched_at=_launched_at)


def clip_ratios(
    tags: Sequence[Mapping[str, Any]], *, max_prompt_length: int, max_response_length: int
) -> dict[str, float]:
    """Share of samples that reach the longest prompt or response that is allowed.

    verl compares with the longest of the batch, so that its ratios are never 0 and say nothing about a limit.

    Args:
        tags: of the samples, padding included; verl's `prompt_len` and `response_len`.
        max_prompt_length: `data.max_prompt_length`, tokens.
        max_response_length: `data.max_response_length`, tokens.
    """
    samples = [tag for tag in tags if not tag.get("is_padding", False)]
    if not samples:
        return {}
    responses = [tag["response_len"] for tag in samples]
    written = [length for length in responses if length > 0] or [0]
    return {
        "prompt_length/clip_ratio": float(np.mean([tag["prompt_len"] >= max_prompt_length for tag in samples])),
        "response_length/clip_ratio": float(np.mean([length >= max_response_length for length in responses])),
        "response_length_non_aborted/clip_ratio": float(np.mean([length >= max_response_length for length in written])),
    }


class Reporting:
    """Mixin for verl's synchronous trainer; comes before it in the list of base classes."""

    _started = False

    @property
    def trainer_mode(self) -> str:
        """verl compares this name with "sync"; this trainer is registered under another and behaves like that one."""
        return "sync"

    @trainer_mode.setter
    def trainer_mode(self, value: str) -> None:
        pass

    def _init_tokenizer(self) -> None:
        stage("reading tokenizer and data")
        super()._init_tokenizer()

    def _init_resource_pool_mgr(self) -> None:
        stage("starting the trainer's worker, the teacher's and the student's server")
        super()._init_resource_pool_mgr()

    def _build_replay_buffer(self) -> Any:
        buffer = super()._build_replay_buffer()
        buffer.poll_interval = self.config.trd.poll_interval_s
        return buffer

    def _load_checkpoint(self) -> None:
        stage("servers are up; loading a checkpoint if there is one")
        super()._load_checkpoint()

    def on_train_begin(self) -> None:
        """verl's hook, called before the first step."""
        stage("training")
        self._progress = progress.Progress(total_steps=self.total_training_steps, start_step=self.global_steps - 1)
        super().on_train_begin()

    def _validate(self) -> dict[str, float]:
        metrics = super()._validate()
        for name, accuracy in metrics.items():
            if name.startswith("val-core/") and name.endswith("/acc/mean@1"):
                num = len(self.val_dataset)
                error = binomial_standard_error(accuracy, num)
                progress.validation(step=self.global_steps, accuracy=accuracy, standard_error=error, num_problems=num)
        return metrics

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict[str, Any], timing_raw: dict[str, float], global_steps: int, epoch: int
    ) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)
        self._count_skipped(metrics)
        data = self.config.data
        metrics |= clip_ratios(
            batch.tags, max_prompt_length=data.max_prompt_length, max_response_length=data.max_response_length
        )
        if not self._started:
            self._started = True
            provenance.record_startup(Path(self.config.trainer.default_local_dir), seconds_since_launch())
        self._progress.update(global_steps, metrics)

    _skipped = _skipped_in_a_row = 0

    def _count_skipped(self, metrics: dict[str, Any]) -> None:
        """Count the updates that verl skipped, because their gradient was not finite.

        Raises:
            RuntimeError: as many in a row as `trd.faults.max_skipped_updates`.
        """
        grad_norm = metrics.get("actor/grad_norm")
        if grad_norm is None:
            return
        is_skipped = not math.isfinite(grad_norm)
        self._skipped += is_skipped
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if is_skipped else 0
        metrics["trd/skipped_updates"] = float(self._skipped)
        limit = self.config.trd.faults.max_skipped_updates
        if is_skipped:
            show(f"WARNING the gradient of step {self.global_steps} is {grad_norm}: its update was skipped")
        if self._skipped_in_a_row >= limit:
            raise RuntimeError(
                f"the gradient was not finite in {limit} steps in a row (trd.faults.max_skipped_updates): lower "
                "actor_rollout_ref.actor.optim.lr, or look for the sample in rollouts/ whose log-probs are not finite"
            )
