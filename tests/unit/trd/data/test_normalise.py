"""What counts as the same text of a problem."""

import pytest

from recipe.trd.data.normalise import key, words


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Find $x$.", "find  x"),
        ("Simplify \\dfrac{1}{2}.", "simplify $\\frac{1}{2}$"),
        ("Take \\left( a+b \\right)", "take (a + b)"),
        ("\\(x^{2}\\) is", "$x^2$ is"),
        ("ﬁnd １２", "find 12"),
    ],
)
def test_layout_does_not_make_a_problem(text, same):
    assert key(text) == key(same)


@pytest.mark.parametrize(
    ("text", "other"), [("x+1", "x-1"), ("\\frac{1}{23}", "\\frac{12}{3}"), ("1 2", "12"), ("x^{12}", "x^1 2")]
)
def test_signs_and_numbers_do(text, other):
    assert key(text) != key(other)


def test_words_are_runs_of_letters_and_digits():
    assert words("Let $f(x)=\\dfrac{x_1}{2}$, then: 12!") == ("let", "f", "x", "frac", "x", "1", "2", "then", "12")
