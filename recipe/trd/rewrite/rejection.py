"""Finished rewrites that are not trained on: what is known of one, and the criteria of `trd.rewrite.reject`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recipe.trd.config.roles import RejectConfig
from recipe.trd.rewrite import meta_talk
from recipe.trd.rewrite.copying import copied_frac
from recipe.trd.rewrite.repetition import repeated_frac
from recipe.trd.rewrite.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a finished rewrite; None where it is not (yet) known, which rejects nothing."""

    is_copy: bool
    """Whether it is y_o, token by token."""
    repeated_frac: float
    """Share of its tokens that repeat an earlier passage of it."""
    length_ratio: float
    """Its tokens for each of y_o."""
    meta_phrases: list[str]
    """What it says about an attempt or a reference."""
    copied_frac: float | None = None
    """Share of its tokens that were copied from the reference."""
    student_log_prob: float | None = None
    """Its mean log-prob under the student's server, nats a token."""
    has_answer: bool | None = None
    """Whether the reward function found an answer."""
    acc: float | None = None
    """Its accuracy."""


def gather(
    y_r_ids: Sequence[int],
    *,
    y_o_ids: Sequence[int],
    y_star_ids: Sequence[int] | None,
    y_r_text: str,
    problem: str,
) -> Evidence:
    """What can be told from the texts alone.

    Args:
        y_r_ids: the rewrite.
        y_o_ids: what the student wrote.
        y_star_ids: the reference solution, where the teacher saw it.
        y_r_text: the rewrite as text.
        problem: the student's last user message.
    """
    return Evidence(
        is_copy=list(y_r_ids) == list(y_o_ids),
        repeated_frac=repeated_frac(y_r_ids),
        length_ratio=len(y_r_ids) / max(1, len(y_o_ids)),
        meta_phrases=meta_talk.phrases(y_r_text, problem=problem),
        copied_frac=None if y_star_ids is None else copied_frac(y_r_ids, y_star_ids=y_star_ids, y_o_ids=y_o_ids),
    )


def _above(value: float | None, bound: float | None) -> bool:
    return value is not None and bound is not None and value > bound


def _below(value: float | None, bound: float | None) -> bool:
    return value is not None and bound is not None and value < bound


def _length_ratio(evidence: Evidence, reject: RejectConfig) -> bool:
    ratio = evidence.length_ratio
    return _below(ratio, reject.length_ratio_below) or _above(ratio, reject.length_ratio_above)


CRITERIA: tuple[tuple[Verdict, Callable[[Evidence, RejectConfig], bool]], ...] = (
    (Verdict.COPY, lambda known, reject: reject.copy and known.is_copy),
    (Verdict.REPETITIVE, lambda known, reject: _above(known.repeated_frac, reject.repeated_frac_above)),
    (Verdict.LENGTH_RATIO, _length_ratio),
    (Verdict.META, lambda known, reject: reject.meta and bool(known.meta_phrases)),
    (Verdict.LEAK, lambda known, reject: _above(known.copied_frac, reject.copied_frac_above)),
    (Verdict.UNLIKELY, lambda known, reject: _below(known.student_log_prob, reject.student_log_prob_below)),
    (Verdict.NO_ANSWER, lambda known, reject: reject.no_answer and known.has_answer is False),
    (Verdict.WRONG, lambda known, reject: reject.wrong and _below(known.acc, 1.0)),
)
"""In this order; the first that holds is the verdict. What cannot be trained on at all comes before (verdict.py)."""


def first_reason(evidence: Evidence, reject: RejectConfig) -> Verdict:
    """The first criterion that rejects the rewrite; ACCEPTED when none does."""
    return next((verdict for verdict, holds in CRITERIA if holds(evidence, reject)), Verdict.ACCEPTED)
