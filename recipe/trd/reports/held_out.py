"""Accuracy on held-out problems, from the validations of a run."""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe.trd.reports import run_folder
from recipe.trd.reports.run_reader import RunReader, is_finite_number
from recipe.trd.reports.standard_error import standard_error


def first_and_last(reader: RunReader, folder: Path) -> dict[str, Any] | None:
    """First and last validation, and their difference on the problems that both have.

    Args:
        reader: is told of what is missing or damaged.
        folder: with verl's dump of each validation, `<step>.jsonl`.

    Returns:
        None without a validation.
    """
    if not folder.is_dir():
        reader.missing.append(folder.name)
        return None
    by_step = {int(path.stem): _problem_means(reader, path) for path in run_folder.numbered(folder, pattern="*.jsonl")}
    steps = [step for step, means in by_step.items() if means]
    if not steps:
        return None
    first, last = by_step[steps[0]], by_step[steps[-1]]
    difference = None
    if len(steps) > 1:
        # By input, not by uid: verl draws new uids at every validation.
        changes = [last[problem] - first[problem] for problem in first if problem in last]
        difference = _estimate(changes, are_differences=True)
    return {
        "is_accuracy": all(0 <= value <= 1 for means in (first, last) for value in means.values()),
        "first": {"step": steps[0], **_estimate(list(first.values()))},
        "last": {"step": steps[-1], **_estimate(list(last.values()))} if len(steps) > 1 else None,
        "difference": difference,
    }


def scores_by_problem(reader: RunReader, path: Path) -> dict[str, list[Any]]:
    """`acc` (`score` where the reward gives no `acc`) of all samples of each problem; without those that have none."""
    scores: dict[str, list[Any]] = defaultdict(list)
    for sample in reader.read_lines(path):
        if (score := sample.get("acc", sample.get("score"))) is not None:
            scores[json.dumps([sample.get("input"), sample.get("gts")])].append(score)
    return scores


def _problem_means(reader: RunReader, path: Path) -> dict[str, float]:
    """Mean over the samples of each problem."""
    by_problem = scores_by_problem(reader, path)
    finite = {problem: [s for s in scores if is_finite_number(s)] for problem, scores in by_problem.items()}
    return {problem: statistics.fmean(scores) for problem, scores in finite.items() if scores}


def _estimate(values: Sequence[float], *, are_differences: bool = False) -> dict[str, Any]:
    return {
        "mean": statistics.fmean(values) if values else None,
        "standard_error": standard_error(values, are_differences=are_differences),
        "num_problems": len(values),
    }


def by_source(metrics: dict[int, dict[str, float]]) -> dict[str, list[float]]:
    """First and last accuracy of each data set, as verl logged it, when there are several."""
    values: dict[str, list[float]] = defaultdict(list)
    for step in sorted(metrics):
        for name, value in metrics[step].items():
            prefix, _, rest = name.partition("/")
            source, _, statistic = rest.rpartition("/acc/")
            if prefix == "val-core" and statistic.startswith("mean@"):
                values[source].append(value)
    return {source: [series[0], series[-1]] for source, series in values.items()} if len(values) > 1 else {}
