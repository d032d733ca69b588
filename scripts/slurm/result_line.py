#!/usr/bin/env python3
"""Append what became of a run to a file of results, one JSON line a run, and print it.

Reads `summary.json` and `config.yaml` of the run folder; a run that failed before it had any gets a shorter line.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml


def read(path: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file; empty when there is none, or half of one."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def result(run_dir: Path, job_dir: Path, exit_code: int) -> dict[str, Any]:
    """The fields of one line. Accuracies in [0, 1]; seconds are those of steps and validations, over all attempts."""
    # A run that failed has an old summary at best, from before it was resumed.
    summary = read(run_dir / "summary.json") if exit_code == 0 else {}
    config = read(run_dir / "config.yaml")
    held_out = summary.get("held_out") or {}
    last = held_out.get("last") or held_out.get("first") or {}
    commit = job_dir / "commit.txt"
    return {
        "job": job_dir.name.removesuffix(f"-{run_dir.name}"),
        "name": run_dir.name,
        "state": "finished" if exit_code == 0 else f"failed ({exit_code})",
        "method": (config.get("trd") or {}).get("method"),
        "seed": (config.get("data") or {}).get("seed"),
        "last_step": summary.get("last_step"),
        "held_out": last.get("mean"),
        "standard_error": last.get("standard_error"),
        "seconds": (summary.get("seconds") or {}).get("total"),
        "attempts": sum(path.name.isdigit() for path in job_dir.iterdir()),
        "commit": commit.read_text(encoding="utf-8").strip() if commit.exists() else None,
        "run_dir": str(run_dir),
        "job_dir": str(job_dir),
    }


def main() -> None:
    """Write one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--job-dir", type=Path, required=True)
    parser.add_argument("--exit-code", type=int, required=True)
    parser.add_argument("--results", type=Path, required=True)
    arguments = parser.parse_args()
    line = json.dumps(result(arguments.run_dir, arguments.job_dir, arguments.exit_code)) + "\n"
    # One write to a file opened for appending: lines of jobs that end together do not mix.
    with arguments.results.open("a", encoding="utf-8") as out:
        out.write(line)
    print(f"result {line}", end="")


if __name__ == "__main__":
    main()
