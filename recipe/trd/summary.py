"""Prints the summary of a run again: `python -m recipe.trd.summary RUN_DIR`."""

import argparse
from pathlib import Path

from recipe.trd.reports import run_summary


def main() -> None:
    """Summarise the run in a folder."""
    parser = argparse.ArgumentParser(prog="python -m recipe.trd.summary", description=main.__doc__)
    parser.add_argument("run_dir", type=Path, help="trainer.default_local_dir of the run")
    run_dir = parser.parse_args().run_dir
    if not run_dir.is_dir():
        parser.error(f"{run_dir} is not a folder")
    run_summary.report(run_dir)


if __name__ == "__main__":
    main()
