"""Checkpoints that are there as a whole or not at all: written aside, checked, renamed; a damaged one is passed over.

A checkpoint is a folder `global_step_<n>` of a run folder. Its manifest, written last, has the size of every file.
"""

import json
import os
import shutil
import zipfile
from pathlib import Path

from verl_ext.runtime import files

ASIDE = ".saving"
"""Folder of the run folder in which a checkpoint is written."""
MANIFEST = "manifest.json"
MARK = "latest_checkpointed_iteration.txt"
"""File that verl writes next to its checkpoints: the step of the newest."""
PREFIX = "global_step_"


def publish(written: Path, run_dir: Path) -> Path:
    """Check a checkpoint that lies aside, and make it the newest of the run.

    Args:
        written: a folder `global_step_<n>` on the same file system.
        run_dir: the run folder.

    Returns:
        Where it is now.

    Raises:
        OSError: it is not whole, or cannot be moved; earlier checkpoints are as they were.
    """
    found = [path for path in sorted(written.rglob("*")) if path.is_file()]
    for path in found:
        if problem := _problem(path, path.stat().st_size):
            raise OSError(f"{path}: {problem}")
    if not found:
        raise OSError(f"{written}: nothing was written")
    files.write_json(written / MANIFEST, {str(path.relative_to(written)): path.stat().st_size for path in found})
    folder, old = run_dir / written.name, written.with_name("replaced")
    if folder.exists():
        os.replace(folder, old)
    os.replace(written, folder)
    files.write_text(run_dir / MARK, step_of(folder))
    shutil.rmtree(old, ignore_errors=True)
    return folder


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None when it is whole.

    One without a manifest (verl's own, or of an earlier version) is whole when its files can be opened.
    """
    try:
        manifest = folder / MANIFEST
        if manifest.is_file():
            sizes = {folder / name: size for name, size in json.loads(manifest.read_text(encoding="utf-8")).items()}
        else:
            sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        if not sizes:
            return "nothing is in it"
        for path, size in sizes.items():
            if problem := _problem(path, size):
                return f"{path.relative_to(folder)}: {problem}"
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return None


def changed(folder: Path) -> str | None:
    """Which file of a checkpoint holds other bytes than were written, by the checksums in it; None when none does.

    torch.load does not look at them. Reads everything once.
    """
    for path in sorted(folder.rglob("*.pt")):
        try:
            with zipfile.ZipFile(path) as archive:
                if (record := archive.testzip()) is not None:
                    return f"{path.relative_to(folder)}: {record} was changed"
        except (OSError, zipfile.BadZipFile) as error:
            return f"{path.relative_to(folder)}: {error}"
    return None


def _problem(path: Path, size: int) -> str | None:
    if not path.is_file():
        return "it is missing"
    if path.stat().st_size != size:
        return f"{path.stat().st_size} bytes, {size} were written"
    if path.suffix == ".pt" and not zipfile.is_zipfile(path):
        return "its end is missing"
    return None


def newest(run_dir: Path, *, below: int | None = None) -> tuple[Path | None, dict[Path, str]]:
    """The newest whole checkpoint of a run, and what is wrong with newer ones.

    Args:
        run_dir: the run folder; its mark says which step was saved last.
        below: look at earlier steps alone.

    Returns:
        The folder, None where no checkpoint is whole; and damaged folders to what is wrong with them.
    """
    damaged: dict[Path, str] = {}
    for folder in reversed(saved(run_dir)):
        if below is not None and int(step_of(folder)) >= below:
            continue
        problem = damage(folder)
        if problem is None:
            return folder, damaged
        damaged[folder] = problem
    return None, damaged


def saved(run_dir: Path) -> list[Path]:
    """Folders of a run's checkpoints by step, up to the one that was saved last; none where there is no mark."""
    mark = run_dir / MARK
    text = mark.read_text(encoding="utf-8").strip() if mark.is_file() else ""
    last = int(text) if text.isdigit() else None
    folders = [path for path in run_dir.glob(f"{PREFIX}*") if path.is_dir() and step_of(path).isdigit()]
    kept = [path for path in folders if mark.is_file() and (last is None or int(step_of(path)) <= last)]
    return sorted(kept, key=lambda path: int(step_of(path)))


def prune(run_dir: Path, *, keep: int) -> None:
    """Remove all but the checkpoints that were saved last."""
    folders = [path for path in run_dir.glob(f"{PREFIX}*") if path.is_dir() and (path / MANIFEST).is_file()]
    by_time = sorted(folders, key=lambda path: (path / MANIFEST).stat().st_mtime_ns)
    for folder in by_time[: max(0, len(by_time) - keep)]:
        shutil.rmtree(folder, ignore_errors=True)


def step_of(folder: Path) -> str:
    """The step in the name of a checkpoint's folder."""
    return folder.name.removeprefix(PREFIX)
