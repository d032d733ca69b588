"""Reads the files of a run that may have crashed: they may be missing or cut off."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from verl_ext.runtime import files


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Whether a value out of JSON is a number, and neither infinite nor NaN."""
    return isinstance(value, Real) and math.isfinite(value)


@dataclass
class RunReader:
    """Reads files and remembers what was wrong with them."""

    missing: list[str] = field(default_factory=list)
    """Names of files that are not there."""
    damaged: Counter[str] = field(default_factory=Counter)
    """File name to the number of lines that could not be read."""

    def read_lines(self, path: Path) -> Iterator[dict[str, Any]]:
        """Objects of a JSON-lines file; other lines are counted."""
        if not path.is_file():
            self.missing.append(path.name)
            return
        damaged: list[int] = []
        yield from files.read_lines(path, damaged=damaged)
        if damaged:
            self.damaged[f"{path.parent.name}/{path.name}" if path.stem.isdigit() else path.name] += len(damaged)

    def read_object(self, path: Path) -> dict[str, Any]:
        """The mapping in a JSON or YAML file; empty when there is none."""
        if not path.is_file():
            self.missing.append(path.name)
            return {}
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (json.JSONDecodeError, yaml.YAMLError):
            value = None
        if not isinstance(value, dict):
            self.damaged[path.name] += 1
            return {}
        return value
