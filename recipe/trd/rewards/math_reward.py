r"""Reward of a solution: is its last `\boxed{...}` the right answer? For verl's `reward.custom_reward_function`."""

import logging
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np

from recipe.trd.rewards import math_equality, math_grading

logger = logging.getLogger(__name__)

_BOX = "\\boxed{"


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, object] | None = None,
    **kwargs: object,
) -> dict[str, float | str]:
    r"""Score of one solution; signature and result are verl's.

    Args:
        data_source: not used; the rule is the same for all data.
        solution_str: the decoded response.
        ground_truth: the right answer, without `\boxed`, in a form that `truth_text` knows.
        extra_info: not used.
        kwargs: not used; verl passes further fields in some configurations.

    Returns:
        score: 1.0 if the last boxed answer equals the ground truth, else 0.0.
        acc: the same number, under the name that verl averages in validation.
        pred: the last boxed answer; empty if there is none.
    """
    pred = last_boxed(solution_str)
    try:
        truth = truth_text(ground_truth)
    except ValueError as error:
        # A run is not lost over one sample; preflight refuses data that hold such a truth.
        logger.warning("a sample of %s is graded 0: %s", data_source, error)
        return {"score": 0.0, "acc": 0.0, "pred": pred}
    score = float(bool(pred) and is_equal(pred, truth))
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


def truth_text(value: Any) -> str:
    """A ground truth as the text that answers are compared with.

    Args:
        value: text; a number (34, 34.0 and "34" are one truth); or a list or array that holds one of these.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, bool):
        raise ValueError(f"the ground truth {value!r} is no answer; give a text or a number")
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Decimal) or (isinstance(value, Real) and np.isfinite(float(value))):
        return number_text(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == 1:
        return truth_text(value[0])
    raise ValueError(f"the ground truth {value!r} is no answer; give a text or a number")


def number_text(value: Any) -> str:
    """A finite number as a plain decimal, without an exponent that would be read as Euler's number: 0.000015, 25."""
    text = format(Decimal(str(value)), "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def is_equal(pred: str, ground_truth: str) -> bool:
    """Whether two answers are equal by `math_equality.is_equal`, which gets a few seconds for it in another process."""
    verdict = math_equality.at_a_glance(pred, ground_truth)
    return math_grading.is_equal(pred, ground_truth) if verdict is None else verdict
