"""Compares runs: evaluations, and training runs by their last validation, with intervals and costs.

    python -m recipe.trd.compare RUN... [--baseline RUN] [--out FOLDER]

A run is a folder of `recipe.trd.evaluate` or of `recipe.trd.main`. With a baseline, differences are paired problem by
problem; runs on different problems are refused.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from recipe.trd.evaluate import report, result, tables
from recipe.trd.reports import held_out, run_folder, run_summary
from recipe.trd.reports.run_reader import RunReader
from verl_ext.runtime import files

HELD_OUT = "validation"
"""Name of the set that a training run is validated on."""

_SEED = 0


@dataclass(frozen=True)
class ComparedRun:
    """A run and what is compared."""

    name: str
    sets: Mapping[str, Mapping[str, Any]]
    """As `sets` of an evaluation's result."""
    costs: Mapping[str, Any]
    result: Mapping[str, Any] | None
    """None for a training run."""
    notes: tuple[str, ...] = ()
    """Warnings about its files."""


def load(folder: Path, name: str) -> ComparedRun:
    """Read a run.

    Raises:
        ValueError: the folder is no run, or nothing was finished in it.
    """
    if (folder / result.FILE).is_file():
        return _evaluation(result.read(folder), name)
    if any(path.is_file() for path in run_folder.metrics_files(folder)):
        return _training(folder, name)
    raise ValueError(
        f"{folder} holds neither {result.FILE} (an evaluation that was finished) nor {run_folder.METRICS} "
        "(a training run)"
    )


def _evaluation(content: Mapping[str, Any], name: str) -> ComparedRun:
    costs = {
        "kind": "evaluation",
        "tokens": content["tokens"]["prompt"] + content["tokens"]["response"],
        "student_tokens": content["tokens"]["response"],
        "seconds": content["seconds"],
        "device_hours": content["device_hours"],
        "commit": content["commit"],
    }
    return ComparedRun(name, {part["name"]: part for part in content["sets"]}, costs, content)


def _training(folder: Path, name: str) -> ComparedRun:
    numbers = run_summary.summarise(folder)
    seconds = numbers["seconds"]["total"] + (numbers["seconds"]["startup"] or 0.0)
    devices = _num_devices(folder)
    costs = {
        "kind": str(numbers["method"] or "training"),
        "steps": numbers["last_step"],
        "tokens": _trained_tokens(folder),
        **_written_tokens(folder),
        "seconds": seconds,
        "device_hours": None if devices is None else seconds * devices / 3600,
        "commit": numbers["commit"],
    }
    validations = _validations(folder)
    sets = {}
    if validations:
        last = max(validations)
        sets[HELD_OUT] = {"step": last, **_as_set(validations[last])}
        if (first := min(validations)) != last:
            costs["at_start"] = sets[HELD_OUT]["metrics"]["avg"] | _as_set(validations[first])["metrics"]["avg"]
    lines = numbers["damaged_lines"].items()
    notes = tuple(f"WARNING: {file}: {count} unreadable lines are left out" for file, count in lines)
    return ComparedRun(name, sets, costs, None, notes)


def _num_devices(folder: Path) -> int | None:
    """Devices that the run reserved, the teacher's included; None where its configuration does not say."""
    # Imports Ray, which evaluations do not need.
    from verl_ext.runtime import resources

    try:
        config = OmegaConf.load(folder / "config.yaml")
        return int(resources.required(config)["GPU"]) if isinstance(config, DictConfig) else None
    except (OSError, OmegaConfBaseException, AttributeError, TypeError):
        return None


def _trained_tokens(folder: Path) -> int | None:
    """Prompt and response tokens of all training batches; a step that was repeated after a resume counts once."""
    by_step: dict[int, float] = {}
    for path in run_folder.metrics_files(folder):
        for line in _read_lines(path):
            value = (line.get("data") or {}).get("perf/total_num_tokens")
            if value is not None:
                by_step[int(line["step"])] = value
    return int(sum(by_step.values())) if by_step else None


def _written_tokens(folder: Path) -> dict[str, int]:
    """Response tokens that student and teacher wrote, where the run dumped them."""
    counts: Counter[str] = Counter()
    for path in (folder / "rollouts").glob("*.jsonl"):
        for sample in _read_lines(path):
            if "y_o_length" in sample:
                counts.update(student_tokens=sample["y_o_length"], teacher_tokens=sample["y_r_length"])
    return dict(counts)


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file of a run. Damaged lines were counted by the summary, see `ComparedRun.notes`."""
    return RunReader().read_lines(path)


def _validations(folder: Path) -> dict[int, dict[str, dict[str, Any]]]:
    """Step to problem to counts, as in an evaluation; empty where scores are not right or wrong."""
    steps = {}
    for path in (folder / "validation").glob("*.jsonl"):
        by_problem = held_out.scores_by_problem(RunReader(), path)
        values = {problem: [float(score) for score in scores] for problem, scores in by_problem.items()}
        if path.stem.isdigit() and values and all(value in (0, 1) for many in values.values() for value in many):
            steps[int(path.stem)] = {
                problem: {"samples": len(many), "right": int(sum(many)), "wrong_votes": None}
                for problem, many in values.items()
            }
    return steps


def _as_set(problems: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    counts = list(problems.values())
    numbers = sorted({part["samples"] for part in counts})
    return {
        "name": HELD_OUT,
        "num_problems": len(problems),
        "num_samples": numbers[0] if len(numbers) == 1 else None,
        "problems": problems,
        **result.estimates([counts], ks=[], seed=_SEED),
    }


def accuracies(runs: Sequence[ComparedRun], baseline: ComparedRun | None) -> list[dict[str, Any]]:
    """One row for each set and run, as numbers: estimates are dictionaries with value, low and high.

    Raises:
        ValueError: a run cannot be paired with the baseline.
    """
    differences: dict[str, dict[str, Any]] = {}
    if baseline is not None:
        baseline_sets = {"sets": list(baseline.sets.values())}
        for run in runs:
            if run is not baseline:
                try:
                    differences[run.name] = result.paired({"sets": list(run.sets.values())}, baseline_sets, seed=_SEED)
                except ValueError as error:
                    raise ValueError(f"{run.name} against {baseline.name}: {error}") from error
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.sets):
        for run in runs:
            if name in run.sets:
                part = run.sets[name]
                row = {"set": name, "run": run.name, "problems": part["num_problems"], "samples": part["num_samples"]}
                row |= {"step": part.get("step"), **part["metrics"]}
                row |= {"truncated_frac": part.get("truncated_frac")}
                row |= {"response_tokens_mean": part.get("response_tokens", {}).get("mean")}
                row |= {"weights": report.weights_name(run.result) if run.result else None}
                rows.append({**row, "change": differences.get(run.name, {}).get(name)})
    return rows


def warnings(runs: Sequence[ComparedRun]) -> list[str]:
    """Warnings where runs are not comparable, or have the same weights where these should differ."""
    evaluations = [run for run in runs if run.result is not None]
    found = [f"{run.name}: {note}" for run in runs for note in run.notes]
    for run in evaluations:
        assert run.result is not None
        found += [f"{run.name}: {warning}" for warning in report.warnings({**run.result, "baseline": {"warnings": []}})]
    for number, run in enumerate(evaluations):
        for other in evaluations[:number]:
            assert run.result is not None
            assert other.result is not None
            pair = report.pair_warnings(run.result, other.result)
            found += [f"{run.name} and {other.name}: {warning}" for warning in pair]
    return found


def accuracy_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The rows as texts; empty columns are left out."""
    metrics = list(dict.fromkeys(key for row in rows for key in row if key == "avg" or key.startswith("pass@")))
    votes = [key for row in rows for key in row if key.startswith("maj@")]
    if votes:
        metrics.append(max(votes, key=lambda key: int(key.partition("@")[2])))
    texts = []
    for row in rows:
        text = {"set": row["set"], "run": row["run"], "problems": str(row["problems"]), "n": str(row["samples"] or "")}
        text |= {name: tables.percent(row.get(name)) for name in metrics}
        text["trunc"] = "" if row["truncated_frac"] is None else f"{100 * row['truncated_frac']:.1f}"
        text["tokens"] = "" if row["response_tokens_mean"] is None else f"{row['response_tokens_mean']:,.0f}"
        average = (row["change"] or {}).get("avg")
        text["change of avg"] = tables.percent(average, signed=True)
        text["p"] = f"{average['p_value']:.3g}" if average else ""
        text["weights"] = row["weights"] or ("" if row["step"] is None else f"step {row['step']}")
        texts.append(text)
    return _without_empty(texts)


def cost_table(runs: Sequence[ComparedRun]) -> list[dict[str, str]]:
    """Tokens, time and devices of every run, as texts."""
    texts = []
    for run in runs:
        costs = run.costs
        text = {"run": run.name, "kind": costs["kind"], "steps": _whole(costs.get("steps"))}
        text["avg at start"] = tables.percent(costs.get("at_start"))
        names = {"tokens": "tokens", "student_tokens": "by student", "teacher_tokens": "by teacher"}
        text |= {label: _whole(costs.get(name)) for name, label in names.items()}
        text["hours"] = f"{costs['seconds'] / 3600:.3f}"
        text["device-hours"] = "" if costs["device_hours"] is None else f"{costs['device_hours']:.3f}"
        text["commit"] = str(costs["commit"] or "unknown")[:12]
        texts.append(text)
    return _without_empty(texts)


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,}"


def _without_empty(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: row[name] for name in row if any(other[name] for other in rows)} for row in rows]


def numbers(rows: Sequence[Mapping[str, Any]], runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """One row for each set, run and metric, in full precision, with the costs of the run."""
    costs = {run.name: {key: value for key, value in run.costs.items() if key != "at_start"} for run in runs}
    flat = []
    for row in rows:
        plain = {key: row[key] for key in ("set", "run", "problems", "samples", "step", "weights", "truncated_frac")}
        for metric, estimate in row.items():
            if metric.partition("@")[0] in ("avg", "pass", "maj"):
                change = (row["change"] or {}).get(metric, {})
                changes = {f"change_{key}": change.get(key) for key in ("value", "low", "high", "p_value")}
                flat.append({**plain, "metric": metric, **estimate, **changes, **costs[row["run"]]})
    return flat


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart.

    Raises:
        ValueError: a folder is given twice.
    """
    parts = [folder.absolute().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise ValueError("a run is given twice")
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(parts))
    return ["/".join(part[-length:]) for part in parts]


def compare(folders: Sequence[Path], *, baseline: Path | None, out: Path | None) -> None:
    """Print the tables, and write them.

    Args:
        folders: runs.
        baseline: one of them, or a further one.
        out: gets `compare.md`, `compare.csv` and `compare.tex`; None writes nothing.

    Raises:
        ValueError: a folder is no run, or cannot be paired with the baseline.
    """
    every = list(folders)
    if baseline is not None and baseline.absolute() not in [folder.absolute() for folder in every]:
        every.insert(0, baseline)
    runs = [load(folder, name) for folder, name in zip(every, unique_names(every), strict=True)]
    reference = None
    if baseline is not None:
        reference = runs[[folder.absolute() for folder in every].index(baseline.absolute())]
    rows = accuracies(runs, reference)
    pages = [accuracy_table(rows), cost_table(runs)]
    warned = warnings(runs)
    _show(pages, warned, reference)
    if out is not None:
        markdown = [*(f"**{warning}**\n" for warning in warned), *map(tables.markdown, pages), report.CAPTION + "\n"]
        files.write_text(out / "compare.md", "\n".join(markdown))
        files.write_text(out / "compare.csv", tables.csv(numbers(rows, runs)))
        comments = "".join(f"% {warning}\n" for warning in warned)
        files.write_text(out / "compare.tex", comments + "\n".join(map(tables.latex, pages)))


def _show(pages: Sequence[Sequence[Mapping[str, str]]], warned: Sequence[str], baseline: ComparedRun | None) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 240
    for warning in warned:
        console.print(warning, style="bold red", markup=False, soft_wrap=True)
    for rows in pages:
        if rows:
            console.print(report.page(rows))
    against = "" if baseline is None else f" Changes are against {baseline.name}, on the same problems."
    console.print(report.CAPTION + against, style="dim", markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Put runs side by side."""
    parser = argparse.ArgumentParser(prog="python -m recipe.trd.compare", description=main.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of an evaluation or a training run")
    parser.add_argument("--baseline", type=Path, help="run that the others are paired with")
    parser.add_argument("--out", type=Path, help="folder for compare.md, compare.csv and compare.tex")
    options = parser.parse_args(arguments)
    try:
        compare(options.runs, baseline=options.baseline, out=options.out)
    except ValueError as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
