"""What a run did, from the files in its folder: `summary.json`, and a page for the terminal.

Reads what is there: a run that crashed, or a method without rewriting, gives a shorter summary that names what is
missing. Accuracies are in [0, 1].
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe.trd.reports import held_out, run_folder, step_seconds, summary_page
from recipe.trd.reports.rollout_counts import RolloutCounts
from recipe.trd.reports.run_reader import RunReader, is_finite_number
from verl_ext.runtime import files


def report(run_dir: Path) -> dict[str, Any]:
    """Write `summary.json` and print the page.

    Returns:
        The content of `summary.json`.
    """
    summary = summarise(run_dir)
    files.write_json(run_dir / "summary.json", summary)
    summary_page.print_summary(summary, run_dir=run_dir)
    return summary


def summarise(run_dir: Path) -> dict[str, Any]:
    """All numbers of a run. What its files do not tell is None, or empty."""
    reader = RunReader()
    metrics = _metrics_by_step(reader, run_folder.metrics_files(run_dir))
    config = reader.read_object(run_dir / "config.yaml")
    versions = reader.read_object(run_dir / "versions.json")
    rollouts = RolloutCounts.read(reader, run_dir / "rollouts")
    trained = [step for step in sorted(metrics) if step > 0]
    trd = config.get("trd")
    return {
        "method": trd.get("method") if isinstance(trd, dict) else None,
        "first_step": trained[0] if trained else None,
        "last_step": trained[-1] if trained else None,
        "held_out": held_out.first_and_last(reader, run_dir / "validation"),
        "held_out_by_source": held_out.by_source(metrics),
        "rewriting": rollouts.as_dict(),
        "examples": rollouts.examples(),
        "seconds": {"startup": versions.get("startup_seconds"), **step_seconds.seconds_by_stage(metrics)},
        "throughput": step_seconds.throughput(metrics, num_samples=rollouts.samples_by_step),
        "checkpoints": [path.name for path in run_folder.numbered(run_dir, pattern="global_step_*")],
        "packages": versions.get("packages", {}),
        "commit": versions.get("commit"),
        "dirty": versions.get("dirty"),
        "missing_files": reader.missing,
        "damaged_lines": dict(reader.damaged),
    }


def _metrics_by_step(reader: RunReader, paths: Sequence[Path]) -> dict[int, dict[str, float]]:
    """Finite numbers of every step; where a step was logged twice (after a resume) the later value counts."""
    steps: dict[int, dict[str, float]] = defaultdict(dict)
    for path, line in ((file, line) for file in paths for line in reader.read_lines(file)):
        if isinstance(line.get("step"), int) and isinstance(line.get("data"), dict):
            numbers = {name: float(value) for name, value in line["data"].items() if is_finite_number(value)}
            steps[line["step"]].update(numbers)
        else:
            reader.damaged[path.name] += 1
    return dict(steps)
