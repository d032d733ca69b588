"""Do the servers have the weights that they should have? Log-probs of a few tokens of every step, compared.

The student's server is compared with the trainer after every weight update: stale, garbled or lost weights show, and so
does an adapter that is silently not applied. A teacher's own server never changes, so it is compared with its own first
answer. verl sends weights in bfloat16, so a trainer in float32 and its server differ by some thousandths of a nat.
"""

from dataclasses import dataclass, field

import numpy as np

from verl_ext.engine.probe import Probe
from verl_ext.runtime.console import show

ADAPTER_SIGNAL = 0.02
"""Mean |log p| difference between adapter and base from which on an adapter that is not in force can be told, nats."""


@dataclass
class ServerWatch:
    """Compares what servers say, warns and stops. Bounds are means over the probe's tokens, nats; None: no bound."""

    warn_above: float | None
    stop_above: float | None
    teacher_ids: list[int] | None = None
    """Tokens that the teacher's servers are asked for: those of the first step."""
    teacher_first: dict[int, np.ndarray] = field(default_factory=dict)
    """First answer of each of the teacher's servers."""

    def student(self, probe: Probe, answers: list[np.ndarray], base_answers: list[np.ndarray]) -> dict[str, float]:
        """Compare the student's servers with the trainer.

        Args:
            probe: of the trainer.
            answers: log-probs [n] of every server.
            base_answers: the same without adapters; empty where all weights are trained.

        Returns:
            `trd/server_trainer_gap/mean` and `/max` over servers and tokens; nothing where no server answered.

        Raises:
            RuntimeError: the mean exceeds the bound, or an adapter is not in force.
        """
        gaps = [np.abs(answer - np.asarray(probe.log_probs)) for answer in answers if answer.size]
        if not gaps:
            return {}
        if probe.base_log_probs is not None:
            self._check_adapter(probe, answers, base_answers)
        return self._judge("trd/server_trainer_gap", gaps, "the student's server and the trainer")

    def teacher(self, answers: list[np.ndarray]) -> dict[str, float]:
        """Compare the teacher's servers with their own first answers.

        Raises:
            RuntimeError: the mean exceeds the bound.
        """
        gaps = []
        for server, answer in enumerate(answers):
            if answer.size:
                gaps.append(np.abs(answer - self.teacher_first.setdefault(server, answer)))
        return (
            self._judge("trd/teacher_server_gap", gaps, "the teacher's server now and at the first step")
            if gaps
            else {}
        )

    def _judge(self, name: str, gaps: list[np.ndarray], sides: str) -> dict[str, float]:
        # numpy's maximum is NaN where any of them is.
        mean, largest = float(np.max([gap.mean() for gap in gaps])), float(np.max([gap.max() for gap in gaps]))
        text = f"{sides} differ by {mean:.3g} nats a token on average (at most {largest:.3g}) on tokens of this step"
        if self.stop_above is not None and not mean <= self.stop_above:
            raise RuntimeError(
                f"{text}, more than trd.server_gap_stop={self.stop_above}: a server has other weights than it should; "
                "start again from the last checkpoint"
            )
        if self.warn_above is not None and mean > self.warn_above:
            show(f"WARNING {text}, more than trd.server_gap_warn={self.warn_above}")
        return {f"{name}/mean": mean, f"{name}/max": largest}

    def _check_adapter(self, probe: Probe, answers: list[np.ndarray], base_answers: list[np.ndarray]) -> None:
        """What the adapter changes on the server is what it changes in the trainer."""
        wanted = np.asarray(probe.log_probs) - np.asarray(probe.base_log_probs)
        signal = float(np.abs(wanted).mean())
        if signal < ADAPTER_SIGNAL or self.stop_above is None:
            return
        for answer, base in zip(answers, base_answers, strict=True):
            if answer.size and base.size and not np.abs((answer - base) - wanted).mean() <= signal / 2:
                raise RuntimeError(
                    "the student's adapter is not in force on its server: in the trainer it moves log-probs by "
                    f"{signal:.3g} nats a token, on the server by {np.abs(answer - base).mean():.3g}, and not the same "
                    "way; start again from the last checkpoint"
                )
