"""How much of a rewrite was taken over from the reference solution word for word."""

from collections.abc import Sequence

SPAN = 8
"""Tokens in a row that count as copied; shorter agreement is notation."""


def copied_frac(
    y_r_ids: Sequence[int], *, y_star_ids: Sequence[int], y_o_ids: Sequence[int], span: int = SPAN
) -> float:
    """Share of the tokens of y_r that stand in a run of `span` tokens which y* has and y_o has not.

    A rewrite that keeps what the student wrote is none; one that hands over the reference is 1. The student would learn
    to say what it could not know.

    Args:
        y_r_ids: the rewrite.
        y_star_ids: the reference solution, in the same tokens.
        y_o_ids: what the student wrote.
        span: tokens.

    Returns:
        In [0, 1]; 0 for an empty rewrite.
    """
    only_there = _spans(y_star_ids, span) - _spans(y_o_ids, span)
    copied = [False] * len(y_r_ids)
    for start in range(len(y_r_ids) - span + 1):
        if tuple(y_r_ids[start : start + span]) in only_there:
            copied[start : start + span] = [True] * span
    return sum(copied) / max(1, len(copied))


def _spans(ids: Sequence[int], span: int) -> set[tuple[int, ...]]:
    return {tuple(ids[start : start + span]) for start in range(len(ids) - span + 1)}
