"""The folder of a run (`trainer.default_local_dir`): what happens to its content when a run starts in it again."""

import os
from pathlib import Path

from verl_ext.runtime import checkpoints

METRICS = "metrics.jsonl"
PREVIOUS = "previous"


def prepare(run_dir: Path, *, resume: bool) -> None:
    """Create the folder, or make room in it.

    A run that resumes keeps everything; verl's logger would empty its metrics, so they get a number
    (`metrics_1.jsonl`, ...), and the summary reads them all. A run that starts from scratch where another one left its
    files moves them to `previous/<n>`: two runs never mix, and nothing is lost.

    Args:
        run_dir: the folder.
        resume: whether verl may resume (`trainer.resume_mode` is not `disable`).
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if resume and (run_dir / checkpoints.MARK).exists():
        if (run_dir / METRICS).exists():
            os.replace(run_dir / METRICS, run_dir / f"metrics_{_next(run_dir, 'metrics_*.jsonl')}.jsonl")
        return
    left = [path for path in run_dir.iterdir() if path.name != PREVIOUS]
    if left:
        folder = run_dir / PREVIOUS / str(_next(run_dir / PREVIOUS, "*"))
        folder.mkdir(parents=True)
        for path in left:
            os.replace(path, folder / path.name)


def _next(folder: Path, pattern: str) -> int:
    """One more than the largest number at the end of a name in the folder."""
    earlier = numbered(folder, pattern=pattern)
    return 1 + (_number(earlier[-1]) if earlier else 0)


def numbered(folder: Path, *, pattern: str) -> list[Path]:
    """Paths whose name ends in a number before its suffix, in the order of that number; others are left out."""
    paths = [path for path in folder.glob(pattern) if path.stem.rpartition("_")[2].isdigit()]
    return sorted(paths, key=_number)


def _number(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def metrics_files(run_dir: Path) -> list[Path]:
    """Files with the metrics of a run, in the order in which they were written."""
    return [*numbered(run_dir, pattern="metrics_*.jsonl"), run_dir / METRICS]
