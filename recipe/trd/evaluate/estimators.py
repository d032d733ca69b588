"""Estimates from graded samples: avg@n, pass@k, maj@k, and the significance of a difference between two models.

All functions are pure. A problem has n samples of which c are right; a set of problems is a sample of the problems that
one could have asked, so intervals and tests resample problems, never single samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

NUM_RESAMPLES = 10_000
"""Of every bootstrap: the ends of a 95 % interval are then known to about 2 % of its width."""


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its interval, both in the unit of the values."""

    value: float
    low: float
    high: float


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Probability that k samples drawn without replacement from the n ones hold a right one: 1 - C(n-c, k) / C(n, k).

    Unbiased for the probability that k fresh samples do. Exact integers, rounded once.

    Raises:
        ValueError: k is not in 1..n, or c not in 0..n.

    Source: Chen et al. 2021, arXiv 2107.03374, section 2.1.
    """
    _check_counts(num_samples, num_right, k)
    all_draws = math.comb(num_samples, k)
    return (all_draws - math.comb(num_samples - num_right, k)) / all_draws


def _check_counts(num_samples: int, num_right: int, k: int) -> None:
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k} of {num_samples} samples: ask for 1 <= k <= number of samples")
    if not 0 <= num_right <= num_samples:
        raise ValueError(f"{num_right} right of {num_samples} samples")


def majority_at_k(num_samples: int, num_right: int, wrong_votes: Sequence[int], k: int) -> float:
    """Probability that the most frequent answer among k samples, drawn without replacement from the n ones, is right.

    Ties are broken at random, each leading answer with the same probability. Samples without an answer do not vote;
    where nobody votes the problem is not solved. Computed by counting, not by drawing.

    Args:
        num_samples: n, with those that gave no answer.
        num_right: votes for the right answer.
        wrong_votes: votes for each wrong answer.
        k: samples drawn.

    Raises:
        ValueError: the counts do not fit together.
    """
    _check_counts(num_samples, num_right, k)
    if num_right + sum(wrong_votes) > num_samples or any(votes < 1 for votes in wrong_votes):
        raise ValueError(f"{num_right} right and {list(wrong_votes)} wrong votes from {num_samples} samples")
    return _majority(num_samples, num_right, tuple(sorted(wrong_votes)), k)


@cache
def _majority(num_samples: int, num_right: int, wrong_votes: tuple[int, ...], k: int) -> float:
    """Sum over the number of votes that the right answer gets in the draw."""
    silent = num_samples - num_right - sum(wrong_votes)
    favourable = 0.0
    for votes in range(1, min(num_right, k) + 1):
        # ways[t, i]: ways to draw i samples of the others so that none has more votes, and t have just as many.
        ways = np.zeros((len(wrong_votes) + 1, k - votes + 1))
        ways[0, 0] = 1.0
        for most in wrong_votes:
            ways = _with_answer(ways, most=most, limit=votes)
        drawn = np.arange(k - votes + 1)
        silent_ways = np.array([float(math.comb(silent, k - votes - i)) for i in drawn])
        shares = 1.0 / (1.0 + np.arange(len(wrong_votes) + 1))
        favourable += math.comb(num_right, votes) * float(shares @ (ways @ silent_ways))
    return favourable / math.comb(num_samples, k)


def _with_answer(ways: np.ndarray, *, most: int, limit: int) -> np.ndarray:
    """Ways after one more wrong answer with `most` votes in all, of which at most `limit` may be drawn."""
    result = np.zeros_like(ways)
    width = ways.shape[1]
    for votes in range(min(most, limit, width - 1) + 1):
        moved = math.comb(most, votes) * ways[:, : width - votes]
        if votes == limit:
            result[1:, votes:] += moved[:-1]
        else:
            result[:, votes:] += moved
    return result


def difference_interval(differences: np.ndarray, *, seed: int, confidence: float = 0.95) -> Estimate:
    """Mean of paired differences, one per problem, with a bootstrap interval; NaN where all are equal."""
    differences = np.asarray(differences, dtype=np.float64)
    if np.all(differences == differences[0]):
        return Estimate(float(differences[0]), math.nan, math.nan)
    return stratified_interval([differences], seed=seed, confidence=confidence)


def stratified_interval(sets: Sequence[np.ndarray], *, seed: int, confidence: float = 0.95) -> Estimate:
    """Mean of the means of several sets of problems, with a bootstrap interval over the problems of each.

    Expanded percentile interval: plain percentiles are too narrow for few problems by the factor sqrt((n-1)/n) and by
    the normal in place of Student's t, so they are taken further out (n is that of the smallest set). Where all values
    are equal resampling shows nothing; if they are 0 or 1 the interval reaches to the value that would give such a
    result with probability (1 - confidence) / 2.

    Args:
        sets: one array [number of problems] for each set.
        seed: of the resampling.
        confidence: nominal coverage.

    Raises:
        ValueError: a set is empty.

    Source: Hesterberg 2015, "What teachers should know about the bootstrap", arXiv 1411.5279, section 4.2 there.
    """
    sets = [np.asarray(values, dtype=np.float64) for values in sets]
    if not sets or any(values.size == 0 for values in sets):
        raise ValueError("no problem to average over")
    value = float(np.mean([values.mean() for values in sets]))
    num = min(values.size for values in sets)
    if all(np.all(values == sets[0][0]) for values in sets):
        return _constant(value, num=num, confidence=confidence)
    if num == 1:
        return Estimate(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    means = np.mean([_resampled_means(values, rng) for values in sets], axis=0)
    tail = expanded_tail(num, confidence=confidence)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def _constant(value: float, *, num: int, confidence: float) -> Estimate:
    """All problems gave the same value."""
    if value not in (0.0, 1.0):
        return Estimate(value, math.nan, math.nan)
    margin = 1 - ((1 - confidence) / 2) ** (1 / num)
    return Estimate(value, 1 - margin, 1.0) if value else Estimate(value, 0.0, margin)


def _resampled_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[NUM_RESAMPLES] means of as many problems, drawn with replacement; in parts, for a set may have thousands."""
    per_part = max(1, 4_000_000 // values.size)
    parts = []
    for start in range(0, NUM_RESAMPLES, per_part):
        drawn = rng.integers(values.size, size=(min(per_part, NUM_RESAMPLES - start), values.size))
        parts.append(values[drawn].mean(axis=1))
    return np.concatenate(parts)


def expanded_tail(num: int, *, confidence: float) -> float:
    """Probability to leave out at each end of the bootstrap distribution of a mean over `num` problems."""
    quantile = student_t_quantile((1 + confidence) / 2, num - 1)
    return NormalDist().cdf(-math.sqrt(num / (num - 1)) * quantile)


@cache
def student_t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t; Python and NumPy have none. Bisection of the exact distribution function.

    Args:
        probability: in (0.5, 1).
        degrees: of freedom, at least 1.
    """
    low, high = 0.0, 1e8
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_t_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _student_t_cdf(t: float, degrees: int) -> float:
    """Distribution function for t >= 0, by the finite sums for whole degrees of freedom.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(degrees))
    square = math.cos(angle) ** 2
    odd = degrees % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for j in range(1 + odd, degrees, 2):
        total += term
        term *= j / (j + 1) * square
    within = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 0.5 + within / 2


def sign_flip_p_value(differences: Sequence[int]) -> float:
    """Two-sided p-value of "no difference": exact permutation test that swaps the two models problem by problem.

    If the models answer a problem alike, its difference is as likely with either sign. The distribution of the sum over
    all 2^n signs is counted by convolution.

    Args:
        differences: right samples of the one minus right samples of the other, problem by problem, out of equally many.

    Returns:
        Probability of a sum at least as far from 0 as the one observed.
    """
    sizes = [abs(int(difference)) for difference in differences if difference]
    reach = sum(sizes)
    # distribution[s + reach]: probability of the sum s.
    distribution = np.zeros(2 * reach + 1)
    distribution[reach] = 1.0
    for size in sizes:
        flipped = np.zeros_like(distribution)
        flipped[size:] += distribution[:-size] / 2
        flipped[:-size] += distribution[size:] / 2
        distribution = flipped
    observed = abs(sum(int(difference) for difference in differences))
    sums = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(distribution[sums >= observed].sum()))
