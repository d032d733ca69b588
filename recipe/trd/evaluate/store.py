"""Files of an evaluation that survive `kill -9`: lines are appended one by one, objects are replaced whole."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

Key = tuple[str, int]
"""A sample: the problem's id and the sample's number, from 0."""


def write_json(path: Path, value: Any) -> None:
    """Write a file that a reader sees whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file that a reader sees whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a text that a reader sees whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def repair(path: Path) -> int:
    """Cut off a last line that was not written to its end.

    Returns:
        Bytes that were cut off.

    Raises:
        OSError: the file cannot be changed.
    """
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        file.truncate(whole)
    return len(content) - whole


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file; none where there is no file.

    Raises:
        ValueError: a line is no JSON object; the message names it.
    """
    if not path.exists():
        return []
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} is damaged: delete the line, and its sample is drawn again")
            rows.append(row)
    return rows


def read_samples(path: Path) -> dict[Key, dict[str, Any]]:
    """Finished samples by problem and number.

    Raises:
        ValueError: a line is damaged, or a sample stands there twice.
    """
    samples: dict[Key, dict[str, Any]] = {}
    for row in read_lines(path):
        key = (str(row["problem"]), int(row["sample"]))
        if key in samples:
            raise ValueError(f"{path} holds sample {key[1]} of problem {key[0]} twice; did two processes write to it?")
        samples[key] = row
    return samples


class Log:
    """Appends rows; one process at a time. Opened on a file with a torn last line, it cuts that line off.

    Every row is handed to the operating system before `append` returns, so that the end of the process loses none.
    """

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> "Log":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        repair(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row."""
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class FolderLock:
    """The one process that may write into a folder; released when the process ends, however it ends."""

    def __init__(self, folder: Path):
        self._path = folder / ".lock"

    def __enter__(self) -> "FolderLock":
        import fcntl

        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ValueError(
                f"another process evaluates into {self._path.parent}: wait for it, or change --out"
            ) from error
        except OSError:
            # Some network file systems know no locks. Samples that two processes wrote are refused when they are read.
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
