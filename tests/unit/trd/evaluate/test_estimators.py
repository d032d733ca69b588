import itertools
import math
from collections import Counter

import numpy as np
import pytest

from recipe.trd.evaluate import estimators


def test_pass_at_k_of_a_worked_example():
    # 5 samples, 2 right, draw 2: of the 10 pairs the 3 among the wrong ones fail. With replacement it would be 0.64.
    assert estimators.pass_at_k(5, 2, 2) == 0.7


@pytest.mark.parametrize(("num", "right"), [(1, 0), (1, 1), (6, 0), (6, 1), (6, 4), (6, 6)])
def test_pass_at_k_counts_all_draws(num, right):
    samples = [1] * right + [0] * (num - right)
    for k in range(1, num + 1):
        draws = list(itertools.combinations(samples, k))
        assert estimators.pass_at_k(num, right, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-15)


def test_pass_at_1_is_the_average_and_large_numbers_stay_exact():
    assert estimators.pass_at_k(1000, 137, 1) == 0.137
    # 1 - 1/C(200, 100), which is far below the precision of a double
    assert estimators.pass_at_k(200, 100, 100) == 1.0
    assert estimators.pass_at_k(1024, 1, 512) == 0.5


@pytest.mark.parametrize(("num", "right", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1)])
def test_counts_that_cannot_be_are_refused(num, right, k):
    with pytest.raises(ValueError, match="samples"):
        estimators.pass_at_k(num, right, k)


def majority_by_drawing(answers, k):
    """Answers: "r" is right, None is none."""
    total = 0.0
    draws = list(itertools.combinations(answers, k))
    for draw in draws:
        votes = Counter(answer for answer in draw if answer is not None)
        leaders = [answer for answer, count in votes.items() if count == max(votes.values())]
        total += ("r" in leaders) / len(leaders) if leaders else 0.0
    return total / len(draws)


@pytest.mark.parametrize(
    "answers",
    [
        ["r"],
        [None],
        ["a", "a", "r"],
        ["r", "r", "a", "b", "c", None],
        ["r", "r", "a", "a", "b", "b", "b", None],
        ["r", "a", "b", "c", "d"],
        ["r", "r", "r", "a", "a", "a", "b", "b", "b"],
        [None, None, "r"],
    ],
)
def test_majority_counts_all_draws_and_splits_ties(answers):
    votes = Counter(answer for answer in answers if answer not in ("r", None))
    for k in range(1, len(answers) + 1):
        value = estimators.majority_at_k(len(answers), answers.count("r"), sorted(votes.values()), k)
        assert value == pytest.approx(majority_by_drawing(answers, k), abs=1e-12)


def test_votes_that_are_more_than_samples_are_refused():
    with pytest.raises(ValueError, match="votes"):
        estimators.majority_at_k(3, 2, [2], 2)


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062047), (2, 4.3026527), (3, 3.1824463), (29, 2.0452296), (120, 1.9799304)]
)
def test_quantiles_of_student_t_are_those_of_the_tables(degrees, expected):
    assert estimators.student_t_quantile(0.975, degrees) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("differences", [[3], [1, -1], [2, 1, -1], [4, 4, -1, 0, 2], [1, 2, 3, 4, 5, 6], [0, 0]])
def test_sign_flip_test_counts_all_signs(differences):
    signs = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(sign, differences, strict=True))) for sign in signs]
    expected = sum(value >= abs(sum(differences)) for value in sums) / len(sums)
    assert estimators.sign_flip_p_value(differences) == pytest.approx(expected, abs=1e-12)


def test_sign_flip_test_holds_its_level():
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(400):
        difficulty = rng.beta(0.6, 0.8, size=30)
        p_values.append(estimators.sign_flip_p_value(rng.binomial(8, difficulty) - rng.binomial(8, difficulty)))
    # Level 5 %: at most three Monte-Carlo standard errors, 1.1 points each, above it.
    assert np.mean(np.array(p_values) <= 0.05) <= 0.083


@pytest.mark.parametrize("metric", ["avg", "pass@4"])
def test_intervals_cover_the_true_value(metric):
    """Runs on 30 problems of a world whose mean is known; nominal coverage 95 %, three Monte-Carlo standard errors."""
    rng = np.random.default_rng(1)
    num_runs, num_problems, num_samples = 600, 30, 8
    a, b = 0.6, 0.8
    # E[p] and 1 - E[(1 - p)^4] under Beta(a, b).
    fails = math.prod((b + i) / (a + b + i) for i in range(4))
    truth = a / (a + b) if metric == "avg" else 1 - fails
    covered = 0
    for number in range(num_runs):
        right = rng.binomial(num_samples, rng.beta(a, b, size=num_problems))
        k = 1 if metric == "avg" else 4
        values = np.array([estimators.pass_at_k(num_samples, int(c), k) for c in right])
        estimate = estimators.stratified_interval([values], seed=number)
        covered += estimate.low <= truth <= estimate.high
    error = math.sqrt(0.95 * 0.05 / num_runs)
    assert abs(covered / num_runs - 0.95) <= 3 * error


def test_interval_of_several_sets_is_that_of_the_mean_of_their_means():
    sets = [np.array([0.0, 1.0, 1.0, 1.0] * 10), np.array([0.0, 0.5] * 50)]
    estimate = estimators.stratified_interval(sets, seed=0)
    assert estimate.value == pytest.approx(0.5)
    # Student's t for 39 degrees of freedom is 2.02, and the factor sqrt(40 / 39).
    spread = math.sqrt(np.var(sets[0]) / 40 + np.var(sets[1]) / 100) / 2
    assert estimate.high - estimate.low == pytest.approx(2 * 2.05 * spread, rel=0.05)


def test_interval_depends_on_the_seed_alone():
    values = np.array([0.0, 0.25, 1.0, 1.0, 0.5])
    assert estimators.stratified_interval([values], seed=3) == estimators.stratified_interval([values], seed=3)


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 0.025 ** (1 / 30), 1.0), (0.0, 0.0, 1 - 0.025 ** (1 / 30))])
def test_problems_that_are_all_solved_or_all_failed_have_a_one_sided_interval(value, low, high):
    estimate = estimators.stratified_interval([np.full(30, value)], seed=0)
    assert (estimate.value, estimate.low, estimate.high) == (value, pytest.approx(low), pytest.approx(high))


def test_one_problem_has_no_interval_and_none_has_no_mean():
    estimate = estimators.stratified_interval([np.array([0.5])], seed=0)
    assert estimate.value == 0.5
    assert math.isnan(estimate.low)
    with pytest.raises(ValueError, match="no problem"):
        estimators.stratified_interval([np.array([])], seed=0)


def test_equal_differences_have_no_interval():
    estimate = estimators.difference_interval(np.zeros(5), seed=0)
    assert estimate.value == 0
    assert math.isnan(estimate.high)
