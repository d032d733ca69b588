"""Where the time of a run went, from the metrics of its steps."""

from collections import Counter, defaultdict
from typing import Any

OVERLAPPING = ("rewrite", "teacher")
"""Stages that run while `gen` does: a sum must not count them twice."""

# Timings outside `timing_s/step`.
_OUTSIDE_STEP = frozenset({"testing"})


def seconds_by_stage(metrics: dict[int, dict[str, float]]) -> dict[str, Any]:
    """Seconds over all steps.

    Args:
        metrics: step to its metrics, among them verl's `timing_s/<stage>`.

    Returns:
        `total`, and `stages`, longest first; their sum without the overlapping ones is the total.
    """
    stages: dict[str, float] = defaultdict(float)
    for step in metrics.values():
        for name, value in step.items():
            kind, _, stage = name.partition("/")
            # Names with another level are statistics over samples.
            if kind == "timing_s" and "/" not in stage:
                stages[stage] += value
    in_steps = stages.pop("step", 0.0)
    inside = sum(value for stage, value in stages.items() if stage not in (*OVERLAPPING, *_OUTSIDE_STEP))
    total = in_steps + sum(stages.get(stage, 0.0) for stage in _OUTSIDE_STEP)
    if in_steps > inside:
        stages["other"] = in_steps - inside
    return {"total": total, "stages": dict(sorted(stages.items(), key=lambda item: -item[1]))}


def throughput(metrics: dict[int, dict[str, float]], *, num_samples: Counter[int]) -> dict[str, float | None]:
    """Rates over the training steps, validation left out; None where the metrics do not tell.

    Args:
        metrics: step to its metrics.
        num_samples: step to its samples.

    Returns:
        seconds_per_step, tokens_per_second (prompts and responses, on all devices) and samples_per_second.
    """

    def per_second(amounts: dict[int, float]) -> float | None:
        timed = {step: metrics[step]["timing_s/step"] for step in amounts if "timing_s/step" in metrics.get(step, {})}
        seconds = sum(timed.values())
        return sum(amounts[step] for step in timed) / seconds if seconds > 0 else None

    steps_per_second = per_second(dict.fromkeys(metrics, 1.0))
    tokens = {step: values.get("perf/total_num_tokens") for step, values in metrics.items()}
    return {
        "seconds_per_step": 1 / steps_per_second if steps_per_second else None,
        "tokens_per_second": per_second({step: value for step, value in tokens.items() if value is not None}),
        "samples_per_second": per_second(dict(num_samples)),
    }
