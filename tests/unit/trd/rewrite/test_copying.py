"""How much of a rewrite came from the reference word for word."""

import pytest

from recipe.trd.rewrite.copying import copied_frac

STAR = list(range(100, 120))
OWN = list(range(20))


@pytest.mark.parametrize(
    ("y_r", "y_o", "span", "expected"),
    [
        (STAR, OWN, 8, 1),
        (OWN, OWN, 8, 0),
        (STAR, STAR, 8, 0),
        ([], OWN, 8, 0),
        (STAR[:3], OWN, 8, 0),
        ([*OWN, *STAR[:10]], OWN, 8, 10 / 30),
        ([*STAR[:4], 7, *STAR[4:8]], OWN, 5, 0),
        ([*STAR[:4], 7, *STAR[4:9]], OWN, 5, 5 / 10),
    ],
)
def test_share_of_tokens_in_runs_that_only_the_reference_has(y_r, y_o, span, expected):
    assert copied_frac(y_r, y_star_ids=STAR, y_o_ids=y_o, span=span) == expected
