"""Rules that values of the configuration keep; a message names the key, its value and what is allowed."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any


def one_of(key: str, value: str, allowed: Iterable[str]) -> None:
    """ValueError for a word that is not among those that are allowed."""
    if value not in (words := tuple(allowed)):
        raise ValueError(f"{key}={value!r} is not one of {', '.join(words)}")


def member(config: Any, node: str, key: str, axis: type[StrEnum]) -> None:
    """Turn the word of a key into the member of its axis, or ValueError where the axis has none of that name."""
    value = getattr(config, key)
    one_of(f"{node}.{key}", value, axis)
    # verl's BaseConfig is read-only once a field is set.
    object.__setattr__(config, key, axis(value))


def require(holds: bool, key: str, value: object, rule: str) -> None:
    """ValueError unless the rule holds."""
    if not holds:
        raise ValueError(f"{key}={value} must be {rule}")


def at_least(key: str, value: float, least: float) -> None:
    """ValueError for a number below the least."""
    require(value >= least, key, value, f"at least {least}")
