"""Files that survive `kill -9`: texts are replaced whole, so a reader sees the old one or the new one."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a text that a reader sees whole or not at all; folders are made.

    Raises:
        OSError: the disk is full, or the folder is not writable; what was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; what JSON has no form for (paths, dates) is written as its text."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file, one object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
