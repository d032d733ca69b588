"""The rule by which two answers are equal, without a limit on time: for processes that may be killed.

The training reward asks it through a child process (math_grading.py); the evaluation's workers have limits themselves.
"""

import re

from math_verify import LatexExtractionConfig, parse, verify

# What symbolic comparison would be busy with, seen at a glance: very long answers, powers of powers, powers with a long
# exponent, long powers of brackets, factorials of brackets and of long numbers, large binomials.
_MAX_ANSWER_CHARS = 200
_EXPLODING = re.compile(
    r"\^[^+\-=,]*\^|\*\*|\^\s*\{?\s*-?\d{4,}|[)\]}]\s*\^\s*\{?\s*-?\d{3,}|\d{4,}\s*!|[)\]}]\s*!|!\s*!|binom\s*\{\s*\d{5,}"
)


def at_a_glance(pred: str, ground_truth: str) -> bool | None:
    """Whether two answers are equal as far as their texts tell; None where only mathematics can."""
    if pred == ground_truth.strip():
        return True
    if any(len(text) > _MAX_ANSWER_CHARS or _EXPLODING.search(text) for text in (pred, ground_truth)):
        return False
    return None


def is_equal(pred: str, ground_truth: str) -> bool:
    """Whether two answers are the same string, or the same mathematical object according to math-verify.

    math-verify limits its time by signals, which work only in the main thread; its limits are off here.
    """
    if (verdict := at_a_glance(pred, ground_truth)) is not None:
        return verdict
    gold, answer = (
        parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None) for text in (ground_truth, pred)
    )
    return bool(verify(gold, answer, timeout_seconds=None))
