"""Where the teacher's top-k stands: position t of a sequence belongs to the prediction of token t + 1."""

import numpy as np
import pytest
import torch

from recipe.trd.rewrite.alignment import at_student_positions
from recipe.trd.rewrite.topk import TopKLogProbs
from verl_ext.engine.positions import response_positions


def topk_of(num_positions, k=3):
    """Rows that can be told apart: ids 1, 2, ..., log-probs -1, -2, ..."""
    ids = np.arange(1, num_positions * k + 1, dtype=np.int32).reshape(num_positions, k)
    return TopKLogProbs(ids, -ids.astype(np.float32))


@pytest.mark.parametrize(("num_prompt", "num_response"), [(1, 1), (1, 4), (5, 1), (4, 3), (3, 0)])
def test_positions_are_those_that_predict_response_tokens(num_prompt, num_response):
    topk = topk_of(num_response)
    ids, log_probs = at_student_positions(topk, num_prompt=num_prompt, num_response=num_response, top_k=3)
    predicting = list(range(num_prompt - 1, num_prompt + num_response - 1))
    others = [position for position in range(num_prompt + num_response) if position not in predicting]
    assert ids[predicting].tolist() == topk.ids.tolist()
    assert log_probs[predicting].tolist() == topk.log_probs.tolist()
    assert not ids[others].any()
    assert not log_probs[others].any()
    assert (ids.dtype, log_probs.dtype) == (torch.int32, torch.float32)
    assert len(ids) == len(log_probs) == num_prompt + num_response


def test_last_position_never_teaches():
    # It predicts the token after the response, which nobody generated.
    ids, _ = at_student_positions(topk_of(4), num_prompt=2, num_response=4, top_k=3)
    assert not ids[-1].any()


@pytest.mark.parametrize(("num_positions", "k"), [(0, 3), (3, 3), (5, 3), (4, 2), (4, 4)])
def test_positions_that_are_not_those_of_the_response_are_refused(num_positions, k):
    message = f"the teacher sent {num_positions} positions of {k} for a response of 4 tokens and a top-k of 3"
    with pytest.raises(ValueError, match=message):
        at_student_positions(topk_of(num_positions, k), num_prompt=2, num_response=4, top_k=3)


def test_ids_without_their_log_probs_are_refused():
    topk = topk_of(4)
    with pytest.raises(ValueError, match="4 positions of 3 for a response of 4 tokens"):
        at_student_positions(TopKLogProbs(topk.ids, topk.log_probs[:, :2]), num_prompt=2, num_response=4, top_k=3)


def test_placeholders_have_the_shape_and_type_of_top_k():
    spread = at_student_positions(topk_of(4), num_prompt=2, num_response=4, top_k=3)
    blanks = at_student_positions(None, num_prompt=2, num_response=4, top_k=3)
    for blank, full in zip(blanks, spread, strict=True):
        assert (blank.shape, blank.dtype) == (full.shape, full.dtype)
        assert not blank.any()


def test_the_engine_finds_what_was_placed_there():
    # Rows spread over two sequences, packed, and gathered again as the objective does.
    first, second = topk_of(3), TopKLogProbs(topk_of(2).ids + 100, topk_of(2).log_probs)
    packed = torch.cat(
        [
            at_student_positions(first, num_prompt=2, num_response=3, top_k=3)[0],
            at_student_positions(second, num_prompt=4, num_response=2, top_k=3)[0],
        ]
    )
    rows = response_positions(sequence_lengths=torch.tensor([5, 6]), response_lengths=torch.tensor([3, 2]), shift=-1)
    assert packed[rows.position].tolist() == [*first.ids.tolist(), *second.ids.tolist()]
