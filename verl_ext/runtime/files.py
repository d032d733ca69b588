"""Files that survive `kill -9`: they are replaced whole, so a reader sees the old content or the new; JSON lines."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write a file so that it gets its name at the end of the block, if nothing was raised in it.

    Args:
        path: the file; its folder is created.

    Yields:
        A path beside it, `<name>.partial`, to write to. If nothing is written there, `path` stays as it was.

    Raises:
        OSError: the disk is full or the folder is not writable; what was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        if partial.exists():
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text, UTF-8; folders are created.

    Raises:
        OSError: as for `replacing`.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; paths and dates in it are written as text.

    Raises:
        OSError: as for `replacing`.
        TypeError: JSON has no form for something else in it.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=_as_text) + "\n")


def _as_text(value: Any) -> str:
    if isinstance(value, os.PathLike | date):
        return str(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")


def write_lines(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file, one object a line.

    Raises:
        OSError: as for `replacing`.
        TypeError: an object cannot be written as JSON.
    """
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in objects))


def parse_lines(path: Path, *, errors: str = "strict") -> Iterator[tuple[int, dict[str, Any] | str]]:
    r"""Number, from 1, and content of every line of a JSON-lines file.

    Lines end at "\n" only: texts in JSON may hold the other characters at which `str.splitlines` splits.

    Args:
        path: an existing file, UTF-8.
        errors: what to do with bytes that are not UTF-8, as for `bytes.decode`.

    Yields:
        The content is the object, or the text of a line that is no JSON object.

    Raises:
        ValueError: a line is not UTF-8; the message names file and line.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                # A file may begin with a byte-order mark.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number} is not UTF-8: {error}") from error
            yield number, _object(text)


def _object(text: str) -> dict[str, Any] | str:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def read_lines(path: Path, *, damaged: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file, one by one.

    Args:
        path: an existing file.
        damaged: for files that may be half written: lines that hold no JSON object are left out, and their numbers
            are appended here; empty lines are left out silently. With None such lines are an error.

    Raises:
        ValueError: a line holds no JSON object; the message names file and line.
    """
    for number, content in parse_lines(path, errors="strict" if damaged is None else "replace"):
        if isinstance(content, dict):
            yield content
        elif damaged is None:
            raise ValueError(f"{path}, line {number} is damaged")
        elif content.strip():
            damaged.append(number)
