"""Lines that a run prints: one for each step, each validation and each stage of the start.

They are printed with `verl_ext.runtime.console.show`, from any process, and reach the terminal of the driver. Metrics
that a method does not have are left out, so `grpo` and `opd` use the same lines.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import pairwise
from numbers import Real
from typing import Any

from verl_ext.runtime.console import show

# Steps whose mean duration predicts the time left: long enough to smooth over validations, short enough to notice
# that responses grow.
_WINDOW_STEPS = 20


def stage(text: str, *, launched_at: float) -> None:
    """Print what the start-up is waiting for, with the seconds since launch.

    Args:
        text: what begins, e.g. "starting the teacher server".
        launched_at: `time.time()` at the launch, taken in the driver.
    """
    show(f"[{time.time() - launched_at:5.0f} s] {text}")


def validation(*, step: int, accuracy: float, standard_error: float, num_problems: int) -> None:
    """Print the result of a validation.

    Args:
        step: training steps done before it; 0 is the untrained student.
        accuracy: in [0, 1].
        standard_error: of the accuracy, in [0, 1].
        num_problems: number of validation problems.
    """
    when = "before training" if step == 0 else f"after step {step}"
    show(f"held-out accuracy {when}: {100 * accuracy:.1f} +/- {100 * standard_error:.1f} % ({num_problems} problems)")


class Progress:
    """Prints one line for each step and estimates the time left. Used in the trainer's process."""

    def __init__(self, *, total_steps: int, start_step: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """Create it right before the first step, whose duration counts from here.

        Args:
            total_steps: number of the last step.
            start_step: steps done by the run that this one resumes.
            clock: seconds; for tests.
        """
        self._total_steps = total_steps
        self._clock = clock
        self._last_time = clock()
        self._durations: deque[float] = deque(maxlen=_WINDOW_STEPS)
        self._first_step = start_step + 1
        self._lr: float | None = None

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Print the line of a finished step.

        Args:
            step: its number, from 1.
            metrics: as logged; values that are missing or not numbers are left out, NaN is printed.
        """
        duration = self._take_time(step)
        mean = sum(self._durations) / len(self._durations)
        width = len(str(self._total_steps))
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, Real)}
        parts = [
            f"step {step:>{width}}/{self._total_steps}",
            f"{100 * step // self._total_steps:2d}%",
            f"{format_seconds(mean * (self._total_steps - step))} left",
            f"{duration:.1f}s" if duration < 10 else f"{duration:.0f}s",
            *_describe(numbers),
        ]
        if (lr := numbers.get("actor/lr")) is not None and lr != self._lr:
            # Only when it changes: a line has to fit into a window.
            parts.append(f"lr {lr:.3g}")
            self._lr = lr
        show("  ".join(parts))

    def _take_time(self, step: int) -> float:
        now = self._clock()
        duration, self._last_time = now - self._last_time, now
        if step == self._first_step + 1:
            # The first step warms up engines and caches; as soon as there is another, it is not representative.
            self._durations.clear()
        self._durations.append(duration)
        return duration


def _describe(metrics: Mapping[str, float]) -> list[str]:
    """Parts of a line for the metrics that exist, most informative first."""
    parts = []
    for label, name in (("div", "actor/trd/divergence"), ("loss", "actor/loss"), ("loss", "actor/pg_loss")):
        if name in metrics:
            parts.append(f"{label} {metrics[name]:.3g}")
            break
    if "trd/rewrite_accept_rate" in metrics:
        parts.append(f"accept {metrics['trd/rewrite_accept_rate']:.0%}")
    if "trd/y_o_acc" in metrics:
        y_r = f"->y_r {metrics['trd/y_r_acc']:.0%}" if "trd/y_r_acc" in metrics else ""
        parts.append(f"y_o {metrics['trd/y_o_acc']:.0%}{y_r}")
    else:
        for label, name, digits in (("score", "critic/score/mean", 3), ("len", "response_length/mean", 0)):
            if name in metrics:
                parts.append(f"{label} {metrics[name]:.{digits}f}")
    if "actor/grad_norm" in metrics:
        parts.append(f"grad {metrics['actor/grad_norm']:.2g}")
    return [*parts, *_throughput(metrics)]


def _throughput(metrics: Mapping[str, float]) -> list[str]:
    """Prompt and response tokens per second on all devices; verl's own `perf/throughput` is per device."""
    seconds = metrics.get("perf/time_per_step", 0.0)
    if not seconds or "perf/total_num_tokens" not in metrics:
        return []
    rate = metrics["perf/total_num_tokens"] / seconds
    return [f"{rate / 1000:.1f}k tok/s" if rate >= 1000 else f"{rate:.0f} tok/s"]


def format_seconds(seconds: float) -> str:
    """A duration in the two units that matter: 8s, 3m20s, 1h12m, 2d03h."""
    whole = round(seconds)
    for (unit, unit_s), (smaller, smaller_s) in pairwise((("d", 86400), ("h", 3600), ("m", 60), ("s", 1))):
        if whole >= unit_s:
            return f"{whole // unit_s}{unit}{whole % unit_s // smaller_s:02d}{smaller}"
    return f"{whole}s"
