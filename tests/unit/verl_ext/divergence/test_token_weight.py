"""Weights by position, the entropy gate, the two clips: by hand."""

import pytest
import torch

from verl_ext.divergence import first_tokens, last_tokens
from verl_ext.divergence.token_weight import clip_entries, clip_positions, entropy_gate

# Two padded responses of 4 and 2 counted tokens, the second with a token masked out in the middle; and an empty one.
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize("mask", [MASK, MASK.bool(), MASK.float()])
def test_first_and_last_tokens_count_what_the_mask_counts(mask):
    first = first_tokens(response_mask=mask, num_tokens=1)
    last = last_tokens(response_mask=mask, num_tokens=3)
    assert first.tolist() == [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert last.tolist() == [[0, 1, 1, 1, 0], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]


def test_enough_tokens_are_the_mask():
    for choose in (first_tokens, last_tokens):
        assert (choose(response_mask=MASK, num_tokens=9) == MASK).all()
        assert (choose(response_mask=MASK, num_tokens=0) == 0).all()


def test_the_gate_opens_above_its_threshold():
    gate = entropy_gate(teacher_entropy=torch.tensor([0.0, 0.8, 0.81, 3.0]), threshold=0.8)
    assert gate.tolist() == [0, 0, 1, 1]


def test_entries_are_clipped_above_only_and_lose_their_derivative():
    terms, derivatives = torch.tensor([[-0.3, 0.04, 0.2]]), torch.tensor([[1.0, 2.0, 3.0]])
    clip_entries(terms=terms, derivatives=derivatives, maximum=0.05)
    torch.testing.assert_close(terms, torch.tensor([[-0.3, 0.04, 0.05]]))
    assert derivatives.tolist() == [[1, 2, 0]]


def test_positions_are_clipped_by_their_sum():
    values, clipped = clip_positions(values=torch.tensor([0.02, 0.3]), maximum=0.1)
    torch.testing.assert_close(values, torch.tensor([0.02, 0.1]))
    assert clipped.tolist() == [0, 1]
