"""Samples of an evaluation in files that survive `kill -9`: one line for each, appended when the sample is finished."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from verl_ext.runtime import files

Key = tuple[str, int]
"""A sample: the problem's id and the sample's number, from 0."""


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
    try:
        return list(files.read_lines(path)) if path.exists() else []
    except ValueError as error:
        raise ValueError(f"{error}: delete the line, and its sample is drawn again") from error


def read_samples(path: Path) -> dict[Key, dict[str, Any]]:
    """Finished samples by problem and number.

    Raises:
        ValueError: a line is damaged, or a sample is there twice.
    """
    samples: dict[Key, dict[str, Any]] = {}
    for line in read_lines(path):
        key = (str(line["problem"]), int(line["sample"]))
        if key in samples:
            raise ValueError(f"{path} holds sample {key[1]} of problem {key[0]} twice; did two processes write to it?")
        samples[key] = line
    return samples


class Log:
    """Appends objects to a JSON-lines file; one process at a time. A last line that was cut off is removed first.

    Every line is handed to the operating system before `append` returns, so it is not lost when the process ends.
    """

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> "Log":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        repair(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def append(self, value: Mapping[str, Any]) -> None:
        """Write one line."""
        self._file.write(json.dumps(value, ensure_ascii=False) + "\n")
        self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class FolderLock:
    """Lets only one process write into a folder; released when the process ends, however it ends."""

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
            # Some network file systems have no locks. Samples that two processes wrote are refused when they are read.
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
