"""How much of a text repeats itself: the mark of a model that fell into a loop."""

from collections.abc import Sequence

SPAN = 16
"""Tokens in a row that count as repeated; shorter repetition is notation and style."""


def repeated_frac(ids: Sequence[int], *, span: int = SPAN) -> float:
    """Share of the tokens that lie in a run of `span` tokens which stood earlier in the same text.

    Args:
        ids: token ids.
        span: tokens.

    Returns:
        In [0, 1); 0 for a text of fewer than `span` + 1 tokens.
    """
    seen: set[tuple[int, ...]] = set()
    repeated = [False] * len(ids)
    for start in range(len(ids) - span + 1):
        run = tuple(ids[start : start + span])
        if run in seen:
            repeated[start : start + span] = [True] * span
        seen.add(run)
    return sum(repeated) / max(1, len(ids))
