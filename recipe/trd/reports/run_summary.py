"""What a run did, from the files in its folder: `summary.json`, and a page for the terminal.

Reads what is there: a run that crashed, or a method without rewriting, gives a shorter summary and a word about what
is missing. Accuracies are in [0, 1]. How the page looks is in `summary_page.py`.
"""

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from recipe.trd.reports import run_folder
from recipe.trd.rewrite.verdict import Verdict
from verl_ext.runtime import files

# Timings outside `timing_s/step`, and those that run while `gen` does: a sum must not count them twice.
_OUTSIDE_STEP = frozenset({"testing"})
OVERLAPPING = ("rewrite", "teacher")

_NUM_EXAMPLES = 3


def report(run_dir: Path) -> dict[str, Any]:
    """Write `summary.json` and print the page.

    Returns:
        The content of `summary.json`.
    """
    # Imported here: workers import this module for the provenance, and need no rich.
    from recipe.trd.reports import summary_page

    summary = summarise(run_dir)
    files.write_json(run_dir / "summary.json", summary)
    summary_page.print_summary(summary, run_dir=run_dir)
    return summary


def summarise(run_dir: Path) -> dict[str, Any]:
    """All numbers of a run. What its files do not tell is None, or empty."""
    reader = _Reader()
    metrics = _metrics_by_step(reader, run_folder.metrics_files(run_dir))
    config = reader.read_object(run_dir / "config.yaml")
    versions = reader.read_object(run_dir / "versions.json")
    rollouts = _Rollouts.read(reader, run_dir / "rollouts")
    trained = [step for step in sorted(metrics) if step > 0]
    trd = config.get("trd")
    return {
        "method": trd.get("method") if isinstance(trd, dict) else None,
        "first_step": trained[0] if trained else None,
        "last_step": trained[-1] if trained else None,
        "held_out": _held_out(reader, run_dir / "validation"),
        "held_out_by_source": _held_out_by_source(metrics),
        "rewriting": rollouts.as_dict(),
        "examples": rollouts.examples(),
        "seconds": {"startup": versions.get("startup_seconds"), **_seconds(metrics)},
        "throughput": _throughput(metrics, num_samples=rollouts.samples_by_step),
        "checkpoints": [path.name for path in _numbered(run_dir, pattern="global_step_*")],
        "packages": versions.get("packages", {}),
        "commit": versions.get("commit"),
        "dirty": versions.get("dirty"),
        "missing_files": reader.missing,
        "damaged_lines": dict(reader.damaged),
    }


@dataclass
class _Reader:
    """Reads files that may be absent or cut off, and remembers what was wrong with them."""

    missing: list[str] = field(default_factory=list)
    damaged: Counter[str] = field(default_factory=Counter)

    def read_lines(self, path: Path) -> Iterator[dict[str, Any]]:
        """Objects of a JSON-lines file; other lines are counted."""
        if not path.is_file():
            self.missing.append(path.name)
            return
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    value = json.loads(line)
                except json.JSONDecodeError:
                    value = None
                if isinstance(value, dict):
                    yield value
                elif line.strip():
                    self.damaged[f"{path.parent.name}/{path.name}" if path.stem.isdigit() else path.name] += 1

    def read_object(self, path: Path) -> dict[str, Any]:
        """The mapping in a JSON or YAML file; empty when there is none."""
        if not path.is_file():
            self.missing.append(path.name)
            return {}
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (json.JSONDecodeError, yaml.YAMLError):
            value = None
        if not isinstance(value, dict):
            self.damaged[path.name] += 1
            return {}
        return value


def _numbered(folder: Path, *, pattern: str) -> list[Path]:
    """Paths whose name ends in a number before its suffix, in the order of that number."""
    numbers = {path: path.stem.rpartition("_")[2] for path in folder.glob(pattern)}
    return sorted((path for path, number in numbers.items() if number.isdigit()), key=lambda path: int(numbers[path]))


def _metrics_by_step(reader: _Reader, paths: Sequence[Path]) -> dict[int, dict[str, float]]:
    """Finite numbers of every step; where a step was logged twice (after a resume) the later value counts."""
    steps: dict[int, dict[str, float]] = defaultdict(dict)
    for path, line in ((file, line) for file in paths for line in reader.read_lines(file)):
        if isinstance(line.get("step"), int) and isinstance(line.get("data"), dict):
            numbers = {name: float(value) for name, value in line["data"].items() if _is_number(value)}
            steps[line["step"]].update(numbers)
        else:
            reader.damaged[path.name] += 1
    return dict(steps)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, Real) and math.isfinite(value)


def standard_error(values: Sequence[float], *, are_differences: bool = False) -> float | None:
    """Standard error of the mean of one value per problem.

    Binomial, sqrt(p (1 - p) / n), when every value is right or wrong; otherwise (means of several samples) from the
    sample variance, s / sqrt(n).

    Args:
        values: in any order.
        are_differences: between two results on the same problem; never binomial, even where none is negative.

    Returns:
        None when it cannot be known from one value.

    Source: Miller 2024, "Adding error bars to evals", arXiv 2411.00640.
    """
    num = len(values)
    if num and not are_differences and all(value in (0, 1) for value in values):
        mean = statistics.fmean(values)
        return math.sqrt(mean * (1 - mean) / num)
    return statistics.stdev(values) / math.sqrt(num) if num > 1 else None


def _held_out(reader: _Reader, folder: Path) -> dict[str, Any] | None:
    """First and last validation, and their difference on the problems that both have."""
    if not folder.is_dir():
        reader.missing.append(folder.name)
        return None
    by_step = {int(path.stem): _problem_means(reader, path) for path in _numbered(folder, pattern="*.jsonl")}
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


def _problem_means(reader: _Reader, path: Path) -> dict[str, float]:
    """Mean of `acc` (of `score` where the reward gives no `acc`) over the samples of each problem."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in reader.read_lines(path):
        value = row.get("acc", row.get("score"))
        if _is_number(value):
            values[json.dumps([row.get("input"), row.get("gts")])].append(float(value))
    return {problem: statistics.fmean(samples) for problem, samples in values.items()}


def _estimate(values: Sequence[float], *, are_differences: bool = False) -> dict[str, Any]:
    return {
        "mean": statistics.fmean(values) if values else None,
        "standard_error": standard_error(values, are_differences=are_differences),
        "num_problems": len(values),
    }


def _held_out_by_source(metrics: dict[int, dict[str, float]]) -> dict[str, list[float]]:
    """First and last accuracy of each data set, as verl logged it, when there are several."""
    values: dict[str, list[float]] = defaultdict(list)
    for step in sorted(metrics):
        for name, value in metrics[step].items():
            prefix, _, rest = name.partition("/")
            source, _, statistic = rest.rpartition("/acc/")
            if prefix == "val-core" and statistic.startswith("mean@"):
                values[source].append(value)
    return {source: [series[0], series[-1]] for source, series in values.items()} if len(values) > 1 else {}


@dataclass
class _Rollouts:
    """Counts over all training samples, and the few that are shown. Samples are read one by one: there may be GBs."""

    samples_by_step: Counter[int] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    y_o_right: float = 0.0
    y_r_right: float = 0.0
    changes: Counter[str] = field(default_factory=Counter)
    # Rank to the latest samples of that rank by prompt: 0 wrong made right, 1 trained on, 2 any rewrite.
    candidates: dict[int, dict[str, dict[str, Any]]] = field(default_factory=lambda: {0: {}, 1: {}, 2: {}})

    @classmethod
    def read(cls, reader: _Reader, folder: Path) -> "_Rollouts":
        """Read `<folder>/<step>.jsonl`, ours or verl's own dump, which knows nothing of rewriting."""
        rollouts = cls()
        for path in _numbered(folder, pattern="*.jsonl"):
            for row in reader.read_lines(path):
                rollouts.samples_by_step[int(path.stem)] += 1
                if row.get("verdict") is not None:
                    rollouts._add(row)
        return rollouts

    def _add(self, row: dict[str, Any]) -> None:
        self.verdicts[str(row["verdict"])] += 1
        before, after = row.get("y_o_acc"), row.get("y_r_acc")
        is_repair = False
        if _is_number(before) and _is_number(after):
            is_repair = before < 1 <= after
            self.y_o_right += before
            self.y_r_right += after
            self.changes["graded"] += 1
            self.changes["wrong_to_right"] += is_repair
            self.changes["right_to_wrong"] += after < 1 <= before
        if row.get("y_r") is None:
            return
        rank = 2 if row.get("trained_on") != "y_r" else 0 if is_repair else 1
        latest = self.candidates[rank]
        latest.pop(str(row.get("x")), None)
        latest[str(row.get("x"))] = row
        if len(latest) > _NUM_EXAMPLES:
            del latest[next(iter(latest))]

    def as_dict(self) -> dict[str, Any] | None:
        """None for a method without rewriting. Accuracies are over the samples of which both were graded."""
        if not self.verdicts:
            return None
        num_graded = self.changes["graded"]
        return {
            "num_samples": self.verdicts.total(),
            "accept_rate": self.verdicts[Verdict.ACCEPTED] / self.verdicts.total(),
            "verdicts": dict(self.verdicts.most_common()),
            "num_graded": num_graded,
            "y_o_acc": self.y_o_right / num_graded if num_graded else None,
            "y_r_acc": self.y_r_right / num_graded if num_graded else None,
            "wrong_to_right": self.changes["wrong_to_right"],
            "right_to_wrong": self.changes["right_to_wrong"],
        }

    def examples(self) -> list[dict[str, Any]]:
        """A few rewrites to read, best rank first, then latest step; no prompt twice."""
        keys = ("step", "x", "y_o", "y_r", "ground_truth", "y_o_acc", "y_r_acc", "verdict", "trained_on")
        chosen: dict[str, dict[str, Any]] = {}
        for rank in sorted(self.candidates):
            for prompt, row in reversed(self.candidates[rank].items()):
                chosen.setdefault(prompt, {key: row.get(key) for key in keys})
        return list(chosen.values())[:_NUM_EXAMPLES]


def _seconds(metrics: dict[int, dict[str, float]]) -> dict[str, Any]:
    """Seconds over all steps: `total`, and `stages` whose sum it is but for the overlapping ones."""
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


def _throughput(metrics: dict[int, dict[str, float]], *, num_samples: Counter[int]) -> dict[str, float | None]:
    """Rates over the training steps, validation left out. Tokens are those of prompts and responses, on all devices."""

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
