"""A problem between a source's row and the prepared row, and the reasons why a row cannot be used."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from recipe.trd.rewards.math_reward import number_text

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """One problem with what a rule needs to grade its solutions."""

    problem: str
    """Without the instruction, which says what form the answer must have."""

    ground_truth: str
    r"""Mathematics: the answer without `\boxed`. Code: the tests as JSON, see `programs.py`."""

    reference_solution: str | None = None
    """A worked solution, where the set has one."""

    id: str = ""
    """The set's own name for the problem."""

    instruction: str | None = None
    """Form of the answer that this row asks for; None for the default of its kind."""

    index: int = -1
    """Position in the source's split."""


class UnusableRow(ValueError):
    """A row that cannot be used; its message is the reason under which it is counted."""


class FlaggedRow(UnusableRow):
    """A row that its own set marks as doubtful; with `--keep-flagged` its item is used all the same."""

    def __init__(self, reason: str, item: Item) -> None:
        super().__init__(reason)
        self.item = item


def text(row: Row, column: str, what: str) -> str:
    """Stripped text of a column; a conversation of one message is its content.

    Args:
        row: the source's row.
        column: its name.
        what: its meaning, for the reason (`problem`, `answer`).

    Raises:
        UnusableRow: there is no such column, or it holds no text.
    """
    if column not in row:
        raise UnusableRow(f"no column {column}")
    value = row[column]
    if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
        if len(value) > 1:
            raise UnusableRow(f"{what} is a conversation of several messages")
        value = value[0].get("content")
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UnusableRow(f"empty {what}")
    if not isinstance(value, str):
        raise UnusableRow(f"{what} is not text")
    if not is_unicode(value):
        raise UnusableRow(f"{what} has half a surrogate pair")
    return value.strip()


def is_unicode(value: str) -> bool:
    """Whether a text can be written: JSON may hold half a surrogate pair, which is no character."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def optional_text(row: Row, column: str | None) -> str | None:
    """Stripped text of a column, or None where it is absent, empty or no text."""
    value = row.get(column) if column else None
    return value.strip() or None if isinstance(value, str) and is_unicode(value) else None


def scalar_text(row: Row, column: str, what: str) -> str:
    """Like `text`, but a number is its shortest text: 25, 25.0 and "25" are the same answer.

    Raises:
        UnusableRow: as for `text`.
    """
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | np.number):
        return text(row, column, what)
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise UnusableRow(f"empty {what}" if math.isnan(value) else f"{what} is infinite")
    return number_text(value.item() if isinstance(value, np.number) else value)
