"""What is kept of one training sample beside its tensors, and what a step's samples say together."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recipe.trd.rewrite.verdict import Verdict

Span = tuple[float, float]
"""Start and end in Unix time, s."""


@dataclass
class SampleRecord:
    """Travels with the sample through TransferQueue as a plain dictionary (`extra_fields["trd"]`)."""

    y_o_ids: list[int]
    rolled_out: float
    """When y_o was complete, Unix time, s."""
    verdict: str | None = None
    """A `Verdict`; None where nothing was to be rewritten."""
    trained_on: str = "y_o"
    """`y_r`, `y_o` (the rollout, or the fallback for a rejected rewrite) or `none` (masked)."""
    y_r_ids: list[int] | None = None
    """None when the teacher was not asked or did not answer."""
    y_o_acc: float | None = None
    num_cut: int = 0
    """Tokens of y_o that the refine context left out."""
    num_cut_reference: int = 0
    """Tokens of the reference solution that a context left out."""
    no_reference: bool = False
    """A context needed a reference solution, and the row has none."""
    evidence: dict[str, Any] | None = None
    """What is known of a finished rewrite: a `rejection.Evidence` as a dictionary; of the last attempt."""
    num_attempts: int = 0
    """How often the teacher was asked for a rewrite."""
    num_thought_tokens: int = 0
    """Tokens of thoughts that were stripped from y_r."""
    rewrite_span: Span | None = None
    teacher_prompt_ids: list[int] | None = None
    """The context that the teacher's rows were computed under."""
    score_span: Span | None = None
    """The second pass over the response, where one was needed."""
    reward_error: str | None = None
    """What the reward function said when it failed on y_o or y_r."""
    error: str | None = None
    """What the teacher's server said when it failed on this sample."""
    y_r_acc: float | None = None
    """None when y_r is not trained on, which leaves it ungraded."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for TransferQueue."""
        return asdict(self)


def busy_seconds(spans: Iterable[Span]) -> float:
    """Length of the union of time spans, s: the time in which at least one of them ran."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def step_metrics(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Metrics of one step.

    `trd/y_o_acc` is over all samples, `trd/y_r_acc` over accepted rewrites, whose rate is over those asked for;
    `trd/wrong_to_right` and `trd/right_to_wrong` are fractions of all samples. `timing_s/rewrite` is the time in which
    at least one rewrite ran, `timing_s/teacher` the same with scoring passes; `trd/rewrite_overlap_frac` is the part of
    `timing_s/rewrite` in which students' rollouts of the same step were still running.

    Args:
        records: `SampleRecord.as_dict()` of every sample of the step, padding rows left out.

    Returns:
        Metric name to value; a mean over no sample is left out, and what is about rewrites where there are none.
    """
    scorings = [tuple(r["score_span"]) for r in records if r["score_span"]]
    metrics = {
        "trd/masked_frac": sum(r["trained_on"] == "none" for r in records) / len(records),
        "trd/y_o_acc": _mean([r["y_o_acc"] for r in records if r["y_o_acc"] is not None]),
        "trd/y_o_length/mean": _mean([len(r["y_o_ids"]) for r in records]),
        "trd/reward_failed_frac": sum(r["reward_error"] is not None for r in records) / len(records),
        "trd/no_reference_frac": sum(r["no_reference"] for r in records) / len(records),
        "trd/reference_cut_tokens/mean": _mean([r["num_cut_reference"] for r in records]),
        "timing_s/teacher": busy_seconds(scorings),
    }
    if records[0]["verdict"] is not None:
        metrics |= _rewrite_metrics(records, scorings)
    return {name: float(value) for name, value in metrics.items() if value == value}


def _rewrite_metrics(records: Sequence[dict[str, Any]], scorings: Sequence[Span]) -> dict[str, float]:
    num = len(records)
    verdicts = Counter(record["verdict"] for record in records)
    rewritten = [r for r in records if r["y_r_ids"]]
    graded = [r for r in records if r["y_o_acc"] is not None and r["y_r_acc"] is not None]
    rewrites = [tuple(r["rewrite_span"]) for r in records if r["rewrite_span"]]
    num_asked = len(rewrites)
    last_rollout = max(r["rolled_out"] for r in records)
    rewrite_s = busy_seconds(rewrites)
    before_last = busy_seconds((start, min(end, last_rollout)) for start, end in rewrites if start < last_rollout)
    metrics = {
        "trd/rewrite_accept_rate": verdicts[Verdict.ACCEPTED] / num_asked if num_asked else float("nan"),
        "trd/rewrite_attempts/mean": _mean([r["num_attempts"] for r in records if r["rewrite_span"]]),
        "trd/rewrite_thought_tokens/mean": _mean([r["num_thought_tokens"] for r in records if r["rewrite_span"]]),
        "trd/y_r_acc": _mean([r["y_r_acc"] for r in records if r["y_r_acc"] is not None]),
        "trd/wrong_to_right": sum(r["y_o_acc"] < 1 <= r["y_r_acc"] for r in graded) / num,
        "trd/right_to_wrong": sum(r["y_r_acc"] < 1 <= r["y_o_acc"] for r in graded) / num,
        "trd/unchanged_frac": sum(r["y_o_ids"] == r["y_r_ids"] for r in rewritten) / num,
        "trd/y_o_cut_tokens/mean": _mean([r["num_cut"] for r in records]),
        "trd/y_r_length/mean": _mean([len(r["y_r_ids"]) for r in rewritten]),
        "timing_s/rewrite": rewrite_s,
        "timing_s/teacher": busy_seconds([*rewrites, *scorings]),
        "trd/rewrite_overlap_frac": before_last / rewrite_s if rewrite_s > 0 else 0.0,
    }
    metrics |= _evidence_metrics([r["evidence"] for r in records if r["evidence"]])
    return metrics | {f"trd/verdict/{verdict}": verdicts[verdict] / num for verdict in Verdict}


def _evidence_metrics(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over finished rewrites, and over those of them of which it is known."""

    def mean(key: str) -> float:
        return _mean([evidence[key] for evidence in found if evidence[key] is not None])

    return {
        "trd/rewrite_meta_frac": _mean([bool(evidence["meta_phrases"]) for evidence in found]),
        "trd/rewrite_repeated_frac": mean("repeated_frac"),
        "trd/rewrite_length_ratio/mean": mean("length_ratio"),
        "trd/reference_copied_frac": mean("copied_frac"),
        "trd/y_r_student_log_prob/mean": mean("student_log_prob"),
    }
