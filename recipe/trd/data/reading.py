"""Rows of a set, one after the other, from the hub or from files: parquet, arrow, JSON lines, JSON and CSV."""

import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe.trd.data.sources import Source
from verl_ext.runtime.errors import first_line
from verl_ext.runtime.files import parse_lines

FORMATS = (".parquet", ".arrow", ".jsonl", ".json", ".csv")
"""Suffixes that can be read. Where a folder has a split in several formats, the first of these is taken."""

# Written next to the data by `datasets` and by downloads from the hub.
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def hub_rows(name: str, source: Source, split: str) -> Iterator[Any]:
    """Rows of a split from the hub, or from the hub's cache; requested when this is called.

    Raises:
        ValueError: the hub cannot be reached or has no such set; the message says how to get a copy.
    """
    import datasets

    attempts: list[tuple[str, dict[str, Any]]] = []
    if source.config or not source.files:
        attempts.append((source.hub, {"name": source.config, "split": source.splits[split]}))
    if split in source.files:
        pattern = f"hf://datasets/{source.hub}/{source.files[split]}"
        builder = "json" if pattern.endswith("jsonl") else "arrow"
        attempts.append((builder, {"data_files": {split: pattern}, "split": split}))
    failures = []
    for path, arguments in attempts:
        try:
            return iter(datasets.load_dataset(path, **arguments))
        # Dozens of exception types can come from the network, and all mean the same here.
        except Exception as error:
            failures.append(first_line(error))
    raise ValueError(
        f"{name}: {source.hub} could not be had from the hub ({failures[0]}). Where there is a network, "
        f"`hf download {source.hub} --repo-type dataset --local-dir DIR`; then add --from DIR"
    )


def local_files(path: Path, splits: Mapping[str, str], *, config: str | None = None) -> dict[str, list[Path]]:
    """Which files hold which split.

    A file belongs to the split whose name is a word of its path; a single file that names none is the first split.

    Args:
        path: a file, or a folder that is searched with everything below it.
        splits: those that are wanted: split of the prepared files to the source's.
        config: where a folder of this name is in `path`, only what is below it counts.

    Raises:
        ValueError: no readable file, or none of a split that is wanted.
    """
    if path.is_file():
        named = [split for split, source_split in splits.items() if _names(path.stem, source_split)]
        return {(named or list(splits))[0]: [path]}
    if not path.is_dir():
        raise ValueError(f"--from {path}: no such file or folder")
    found = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in FORMATS and file.name not in _NOT_DATA]
    found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not found:
        raise ValueError(f"--from {path}: no file with the suffix {', '.join(FORMATS)} in that folder")
    below = [file for file in found if config and config in file.relative_to(path).parts]
    found = below or found
    chosen = {}
    for split, source_split in splits.items():
        files = [file for file in found if _names(str(file.relative_to(path).with_suffix("")), source_split)]
        files = files or (found if len(splits) == 1 else [])
        if not files:
            names = ", ".join(str(file.relative_to(path)) for file in found[:5])
            raise ValueError(
                f"--from {path}: no file is named after the split {source_split!r} (there are {names}); "
                "name one split with --splits, or give its file"
            )
        chosen[split] = _one_format(files)
    return chosen


def _names(path: str, split: str) -> bool:
    return re.search(rf"(?<![a-z]){split}(?![a-z])", path.lower()) is not None


def _one_format(files: Sequence[Path]) -> list[Path]:
    suffix = min((file.suffix.lower() for file in files), key=FORMATS.index)
    return [file for file in files if file.suffix.lower() == suffix]


def files_rows(paths: Sequence[Path]) -> Iterator[Any]:
    """Rows of several files, one after the other."""
    return (row for path in paths for row in file_rows(path))


def file_rows(path: Path) -> Iterator[Any]:
    """Rows of a file; a line that is not a JSON object is yielded as text, to be counted.

    Raises:
        ValueError: the file is not what its suffix says.
    """
    readers = {".parquet": _parquet, ".arrow": _arrow, ".jsonl": _json_lines, ".json": _json, ".csv": _csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"--from {path}: cannot read {path.suffix or 'files without a suffix'}, only {FORMATS}")
    try:
        yield from reader(path)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        # pyarrow's errors are ValueErrors too.
        raise ValueError(f"--from {path}: cannot be read as {path.suffix[1:]}: {first_line(error)}") from error


def _parquet(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()


def _arrow(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        # `datasets` writes streams; the other form of the format has an index at its end.
        try:
            batches: Iterator[Any] = iter(pa.ipc.open_stream(source))
        except pa.ArrowInvalid:
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
        for batch in batches:
            for start in range(0, batch.num_rows, 256):
                yield from batch.slice(start, 256).to_pylist()


def _json_lines(path: Path) -> Iterator[Any]:
    return (content for _, content in parse_lines(path) if isinstance(content, dict) or content.strip())


def _json(path: Path) -> Iterator[Any]:
    # Editors on Windows put a byte-order mark first.
    content = path.read_text(encoding="utf-8-sig")
    if not content.lstrip().startswith("["):
        # Some sets call JSON lines `.json`.
        yield from _json_lines(path)
        return
    yield from json.loads(content)


def _csv(path: Path) -> Iterator[Any]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)
