"""Standard errors of accuracies and of other means over problems."""

import math

import pytest

from recipe.trd.reports.standard_error import binomial_standard_error, standard_error


def test_standard_error_of_right_and_wrong_is_binomial():
    # p = 3/4, n = 4: sqrt(0.75 * 0.25 / 4)
    assert standard_error([1, 1, 1, 0]) == pytest.approx(0.21650635)


def test_standard_error_of_problem_means_uses_the_sample_variance():
    # mean 0.5, squared deviations 0.25 + 0 + 0.25, variance 0.5 / 2, sqrt(0.25 / 3)
    assert standard_error([1.0, 0.5, 0.0]) == pytest.approx(0.28867513)


def test_standard_error_of_differences_is_not_binomial_by_coincidence():
    # mean 0.5, variance (0.25 + 0.25) / 1, sqrt(0.5 / 2)
    assert standard_error([1, 0], are_differences=True) == pytest.approx(0.5)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_standard_error_of_too_little_is_unknown(values):
    assert standard_error(values) is None


def test_binomial_standard_error_is_that_of_single_problems_and_unknown_for_scores():
    assert binomial_standard_error(0.75, 4) == standard_error([1, 1, 1, 0])
    assert math.isnan(binomial_standard_error(-0.5, 4))
