"""The standard error of an accuracy, or of another mean over problems."""

import math
import statistics
from collections.abc import Sequence


def standard_error(values: Sequence[float], *, are_differences: bool = False) -> float | None:
    """Standard error of the mean of one value per problem.

    Binomial where every value is right or wrong; otherwise (means of several samples) from the sample variance,
    s / sqrt(n).

    Args:
        values: in any order.
        are_differences: between two results on the same problem; never binomial, even where none is negative.

    Returns:
        None when it cannot be known from one value.

    Source: Miller 2024, "Adding error bars to evals", arXiv 2411.00640.
    """
    num = len(values)
    if num and not are_differences and all(value in (0, 1) for value in values):
        return binomial_standard_error(statistics.fmean(values), num)
    return statistics.stdev(values) / math.sqrt(num) if num > 1 else None


def binomial_standard_error(accuracy: float, num_problems: int) -> float:
    """sqrt(p (1 - p) / n) for problems that are right or wrong.

    Args:
        accuracy: p, in [0, 1]; the result is NaN for anything else.
        num_problems: n, at least 1.
    """
    return math.sqrt(accuracy * (1 - accuracy) / num_problems) if 0 <= accuracy <= 1 else math.nan
