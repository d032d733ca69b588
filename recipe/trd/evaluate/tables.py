"""Results as tables: Markdown and LaTeX for reading, CSV with full precision for computing."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

EQUAL_TO_BASE = "EQUAL TO BASE"


def percent(estimate: dict[str, Any] | None, *, signed: bool = False) -> str:
    """`54.2 [47.1, 61.0]`; the interval is left out where it is unknown."""
    if estimate is None:
        return ""
    sign = "+" if signed else ""
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    interval = "" if low is None or high is None else f" [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
    return f"{100 * value:{sign}.1f}{interval}"


def plain(estimate: Any) -> dict[str, float | None]:
    """An `estimators.Estimate` for JSON: NaN becomes None."""
    values = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """A table of texts; the columns are those of the first row."""
    if not rows:
        return ""
    names = list(rows[0])
    cells = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in cells)


def latex(rows: Sequence[dict[str, str]]) -> str:
    """The same table for LaTeX with booktabs."""
    return str(pd.DataFrame(list(rows)).to_latex(index=False, escape=True)) if rows else ""


def csv(rows: Sequence[dict[str, Any]]) -> str:
    """Numbers in full precision; a key without a value is an empty field."""
    return str(pd.DataFrame(list(rows)).to_csv(index=False))
