"""The largest entries of a position, found in two stages."""

import pytest
import torch

from verl_ext.divergence import softmax


@pytest.mark.parametrize("draw", [torch.randn, lambda *shape: torch.randint(3, shape).float(), torch.zeros])
@pytest.mark.parametrize(("width", "top_k"), [(1, 1), (127, 127), (256, 1), (1000, 7), (5000, 5), (5001, 38)])
def test_the_largest_of_a_row_are_found_in_two_stages(draw, width, top_k):
    rows = draw(3, width)
    ids, values = softmax.largest(rows, top_k)
    assert torch.equal(values, rows.topk(top_k, -1).values)
    assert torch.equal(rows.gather(-1, ids), values)
    assert all(row.unique().numel() == top_k for row in ids)


def test_the_largest_behind_the_last_piece_are_found():
    rows = torch.zeros(2, 5001)
    rows[0, 5000], rows[1, 4992:] = 1, 1
    ids, _ = softmax.largest(rows, 9)
    assert ids[0, 0] == 5000
    assert sorted(ids[1].tolist()) == list(range(4992, 5001))
