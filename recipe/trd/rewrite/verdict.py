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
    THOUGHTS = "thoughts"
    """It holds thoughts, and `trd.rewrite.thoughts=reject`; or they never end."""
    COPY = "copy"
    """It is y_o. This and the following by `trd.rewrite.reject`, see rejection.py."""
    REPETITIVE = "repetitive"
    """It repeats itself."""
    LENGTH_RATIO = "length_ratio"
    """Too short or too long beside y_o."""
    META = "meta"
    """It speaks of an attempt, an earlier solution or a reference."""
    LEAK = "leak"
    """Too much of it was copied from the reference."""
    UNLIKELY = "unlikely"
    """The student would hardly write it."""
    NO_ANSWER = "no_answer"
    """The reward function finds no answer in it."""
    WRONG = "wrong"
    """The reward function finds it wrong."""
    NOT_NEEDED = "not_needed"
    """y_o is right, and `trd.rewrite.when=incorrect_only`: the teacher was not asked."""
    NO_REFERENCE = "no_reference"
    """The context needs a reference solution, and the row has none."""
    PROMPT_TOO_LONG = "prompt_too_long"
    """The refine context does not fit, even with nothing of y_o in it."""
    FAILED = "failed"
    """The teacher's server refused, aborted, died or did not answer in time."""

    @property
    def is_final(self) -> bool:
        """Whether asking the teacher again could not lead to another verdict."""
        return self in (Verdict.ACCEPTED, Verdict.NO_REFERENCE, Verdict.PROMPT_TOO_LONG, Verdict.NOT_NEEDED)


def judge(
    y_r_ids: Sequence[int],
    *,
    finish_reason: str | None,
    eos_token_ids: Sequence[int],
    max_length: int,
    allow_unfinished: bool = False,
) -> Verdict:
    """Verdict on the token ids that the teacher returned.

    Args:
        y_r_ids: generated ids, the sampled end-of-turn token included.
        finish_reason: vLLM's: "stop", "length" or "abort".
        eos_token_ids: ids that end a turn.
        max_length: `data.max_response_length`, tokens, end of turn included.
        allow_unfinished: accept a rewrite that ran into the teacher's limit (`trd.rewrite.reject.unfinished=false`).
    """
    if finish_reason == "abort":
        return Verdict.FAILED
    ended = bool(y_r_ids) and y_r_ids[-1] in eos_token_ids
    if len(y_r_ids) - int(ended) == 0:
        return Verdict.EMPTY
    if not ended and not allow_unfinished:
        return Verdict.UNFINISHED
    if len(y_r_ids) > max_length:
        return Verdict.OVERLONG
    return Verdict.ACCEPTED
