"""Tests of a program in the form that the reward reads."""

import pytest

from recipe.trd.data.items import UnusableRow
from recipe.trd.data.programs import custom_tests


@pytest.mark.parametrize(
    "tests", ["{", "[]", "{}", '{"inputs": ["1"], "outputs": []}', '{"inputs": [], "outputs": []}']
)
def test_tests_of_another_form_are_unusable(tests):
    with pytest.raises(UnusableRow):
        custom_tests(tests)


def test_tests_that_are_in_verls_form_stay():
    for tests in (
        '{"inputs": ["1\\n2"], "outputs": ["3"], "fn_name": "add"}',
        '{"inputs": ["1"], "outputs": ["2"]}',
        '{"assert_case": ["assert f(1) == 2"]}',
    ):
        assert custom_tests(tests) == tests
