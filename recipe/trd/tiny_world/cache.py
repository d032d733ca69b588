"""Content keys of build stages, and outputs that either exist completely or do not count.

The record of a stage is `<out>/stages/<stage>.json`. It is removed before the first output of the stage is replaced and
written after the last one, so an interrupted build is never taken for a finished one.
"""

import ast
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from verl_ext.runtime import files


@dataclass(frozen=True)
class Stage:
    """A step of the build: its name, the key of everything it depends on, and the files or folders it makes."""

    name: str
    key: str
    outputs: tuple[str, ...]


def content_key(*, config: Mapping[str, object], sources: Sequence[Path], upstream: Sequence[str]) -> str:
    """Key of a stage: hash of its part of the configuration, the meaning of its source files, and its inputs' keys."""
    parts = {"config": config, "sources": [_meaning(path) for path in sources], "upstream": list(upstream)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _meaning(path: Path) -> str:
    """Text of a source file; Python without comments, docstrings, layout and imports, which change nothing."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    # A module that moves is imported from elsewhere; what it does is in its own text.
    tree.body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return ast.unparse(tree)


def _record_path(out: Path, stage: Stage) -> Path:
    return out / "stages" / f"{stage.name}.json"


def is_built(out: Path, stage: Stage) -> bool:
    """Whether the outputs in a folder were made by exactly this stage."""
    record = _record_path(out, stage)
    if not record.is_file() or not all((out / name).exists() for name in stage.outputs):
        return False
    return json.loads(record.read_text(encoding="utf-8"))["key"] == stage.key


def build_seconds(out: Path, stage: Stage) -> float:
    """Seconds that a finished stage took when it was built."""
    return json.loads(_record_path(out, stage).read_text(encoding="utf-8"))["seconds"]


@contextmanager
def building(out: Path, stage: Stage) -> Iterator[Path]:
    """Temporary folder for the outputs of a stage; they replace the old ones when the block ends without an error."""
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f".{stage.name}-", dir=out))
    try:
        yield folder
        _commit(out, stage, folder, seconds=time.monotonic() - start)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _commit(out: Path, stage: Stage, folder: Path, *, seconds: float) -> None:
    record = _record_path(out, stage)
    record.parent.mkdir(exist_ok=True)
    record.unlink(missing_ok=True)
    for name in stage.outputs:
        if (out / name).is_dir():
            # Renamed away first: deleting in place would show readers a folder with some of its files.
            os.replace(out / name, folder / f"replaced-{name}")
        os.replace(folder / name, out / name)
    files.write_json(record, {"key": stage.key, "seconds": round(seconds, 1)})


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Wait until no other process builds in this folder, then keep others out."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
