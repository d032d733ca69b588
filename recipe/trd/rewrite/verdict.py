"""Verdicts on a rewrite: is y_r fit to be trained on?"""

from collections.abc import Sequence
from enum import StrEnum


class Verdict(StrEnum):
    """Outcome of one rewrite. Everything but ACCEPTED sends the sample to `trd.rewrite.fallback`; each is counted."""

    ACCEPTED = "accepted"
    EMPTY = "empty"
    """No token before the end of turn."""
    UNFINISHED = "unfinished"
    """The teacher ran into its token limit before it ended the turn."""
    OVERLONG = "overlong"
    """Longer than `data.max_response_length`, the rows that the student has for a response."""
    NO_REFERENCE = "no_reference"
    """The context needs a reference solution, and the row has none."""
    PROMPT_TOO_LONG = "prompt_too_long"
    """The refine context does not fit, even with nothing of y_o in it."""
    FAILED = "failed"
    """The teacher's server refused, aborted or died."""


def judge(
    y_r_ids: Sequence[int], *, finish_reason: str | None, eos_token_ids: Sequence[int], max_length: int
) -> Verdict:
    """Verdict on the token ids that the teacher returned.

    Args:
        y_r_ids: generated ids, the sampled end-of-turn token included.
        finish_reason: vLLM's: "stop", "length" or "abort".
        eos_token_ids: ids that end a turn.
        max_length: `data.max_response_length`, tokens, end of turn included.
    """
    if finish_reason == "abort":
        return Verdict.FAILED
    ended = bool(y_r_ids) and y_r_ids[-1] in eos_token_ids
    if len(y_r_ids) - int(ended) == 0:
        return Verdict.EMPTY
    if not ended:
        return Verdict.UNFINISHED
    if len(y_r_ids) > max_length:
        return Verdict.OVERLONG
    return Verdict.ACCEPTED
