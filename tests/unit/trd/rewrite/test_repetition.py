import random

import pytest

from recipe.trd.rewrite.repetition import SPAN, repeated_frac


@pytest.mark.parametrize(
    ("ids", "span", "expected"),
    [
        ([], 2, 0),
        ([1], 2, 0),
        ([1, 2, 3, 4], 2, 0),
        ([1, 2, 1, 2], 2, 2 / 4),
        ([1, 2, 9, 1, 2, 9], 3, 3 / 6),
        ([1, 1, 1, 1], 2, 3 / 4),  # from the second pair on
        ([1, 2, 3, 1, 2], 3, 0),  # shorter than a span
    ],
)
def test_share_by_hand(ids, span, expected):
    assert repeated_frac(ids, span=span) == pytest.approx(expected)


def test_a_loop_is_far_from_a_text():
    generator = random.Random(0)
    text = [generator.randrange(1000) for _ in range(400)]
    assert repeated_frac(text) == 0
    assert repeated_frac(text[:SPAN] * 25) > 0.9
    assert repeated_frac([*text, *text[:100]]) == pytest.approx(100 / 500)
