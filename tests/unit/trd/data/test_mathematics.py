"""Answers without what stands around them."""

import pytest

from recipe.trd.data.mathematics import clean_answer


@pytest.mark.parametrize(
    ("answer", "clean"),
    [("$\\boxed{7}$", "7"), ("\\boxed{$x$}", "x"), ("$a$ and $b$", "$a$ and $b$"), ("\\boxed{1}, \\boxed{2}",) * 2],
)
def test_answers_lose_what_is_around_all_of_them(answer, clean):
    assert clean_answer(answer) == clean
