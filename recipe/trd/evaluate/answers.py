"""Groups equal answers to a problem. Runs in grading workers, so it imports little."""

from collections.abc import Sequence

from recipe.trd.rewards import math_equality


def group(preds: Sequence[str]) -> list[int]:
    """Group number of each answer; the answers of a group are equal as texts, numbers or mathematics."""
    leaders: list[str] = []
    groups = []
    for pred in preds:
        number = next((place for place, leader in enumerate(leaders) if _same(leader, pred)), len(leaders))
        if number == len(leaders):
            leaders.append(pred)
        groups.append(number)
    return groups


def is_easy(preds: Sequence[str]) -> bool:
    """Whether no algebra is needed to group them: a single answer, or whole numbers as in most competitions."""
    return len(preds) == 1 or all(map(_is_whole, preds))


def _same(one: str, other: str) -> bool:
    return int(one) == int(other) if _is_whole(one) and _is_whole(other) else math_equality.is_equal(one, other)


def _is_whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and len(digits) < 1000
