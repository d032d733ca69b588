r"""Reward of a solution: is its last `\boxed{...}` the right answer? For verl's `reward.custom_reward_function`."""

import re
from collections.abc import Mapping

from math_verify import LatexExtractionConfig, parse, verify

_BOX = "\\boxed{"

# Symbolic comparison evaluates numbers exactly and has no time limit here (see `is_equal`). These answers would keep it
# busy forever: very long ones, powers of powers, powers with a long exponent, long powers of brackets, factorials of
# brackets and of long numbers.
_MAX_ANSWER_CHARS = 200
_EXPLODING = re.compile(
    r"\^[^+\-=,]*\^|\*\*|\^\s*\{?\s*-?\d{4,}|[)\]}]\s*\^\s*\{?\s*-?\d{3,}|\d{4,}\s*!|[)\]}]\s*!|!\s*!"
)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, object] | None = None,
    **kwargs: object,
) -> dict[str, float | str]:
    r"""Score of one solution; signature and result are verl's.

    Args:
        data_source: not used; the rule is the same for all data.
        solution_str: the decoded response.
        ground_truth: the right answer, without `\boxed`.
        extra_info: not used.
        kwargs: not used; verl passes further fields in some configurations.

    Returns:
        score: 1.0 if the last boxed answer equals the ground truth, else 0.0.
        acc: the same number, under the name that verl averages in validation.
        pred: the last boxed answer; empty if there is none.
    """
    pred = last_boxed(solution_str)
    score = float(bool(pred) and is_equal(pred, ground_truth))
    return {"score": score, "acc": score, "pred": pred}


def last_boxed(text: str) -> str:
    r"""Content of the last `\boxed{...}`, stripped; empty if there is none or its braces do not close.

    An earlier box is no substitute for a last one that was cut off: the solution had not settled on it.
    """
    start = text.rfind(_BOX)
    if start < 0:
        return ""
    start += len(_BOX)
    depth = 1
    for position in range(start, len(text)):
        # A brace after a backslash is a sign of the answer, not a group.
        if text[position] in "{}" and text[position - 1] != "\\":
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return text[start:position].strip()
    return ""


def is_equal(pred: str, ground_truth: str) -> bool:
    r"""Whether two answers are the same string, or the same mathematical object according to math-verify.

    math-verify limits its time by signals, which work in the main thread only, whereas verl calls rewards from others.
    So its limits are off, and answers that it could not finish are compared as strings only.
    """
    if pred == ground_truth.strip():
        return True
    if len(pred) > _MAX_ANSWER_CHARS or _EXPLODING.search(pred):
        return False
    gold, answer = (
        parse(f"{_BOX}{text}}}", [LatexExtractionConfig()], parsing_timeout=None) for text in (ground_truth, pred)
    )
    return bool(verify(gold, answer, timeout_seconds=None))
