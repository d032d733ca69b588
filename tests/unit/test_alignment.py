"""Which row of the teacher stands where: row t of a packed sequence belongs to the prediction of token t + 1."""

import numpy as np
import pytest
import torch

from recipe.trd.alignment import no_rows, response_rows, to_student_rows
from recipe.trd.rewrite import TopK


def topk_of(num_rows, k=3):
    """Rows that can be told apart: ids 1, 2, ..., log-probs -1, -2, ..."""
    ids = np.arange(1, num_rows * k + 1, dtype=np.int32).reshape(num_rows, k)
    return TopK(ids, -ids.astype(np.float32))


def jagged(lengths):
    return torch.nested.nested_tensor_from_jagged(
        torch.zeros(sum(lengths), dtype=torch.int64), offsets=torch.tensor([0, *np.cumsum(lengths)])
    )


@pytest.mark.parametrize(("num_prompt", "num_response"), [(1, 1), (1, 4), (5, 1), (4, 3), (3, 0)])
def test_rows_are_those_that_predict_response_tokens(num_prompt, num_response):
    topk = topk_of(num_response)
    ids, log_probs = to_student_rows(topk, num_prompt=num_prompt, num_response=num_response)
    predicting = list(range(num_prompt - 1, num_prompt + num_response - 1))
    others = [row for row in range(num_prompt + num_response) if row not in predicting]
    assert ids[predicting].tolist() == topk.ids.tolist()
    assert log_probs[predicting].tolist() == topk.log_probs.tolist()
    assert not ids[others].any()
    assert not log_probs[others].any()
    assert (ids.dtype, log_probs.dtype) == (torch.int32, torch.float32)
    assert len(ids) == len(log_probs) == num_prompt + num_response


def test_last_row_never_teaches():
    # It predicts the token after the response, which nobody generated.
    ids, _ = to_student_rows(topk_of(4), num_prompt=2, num_response=4)
    assert not ids[-1].any()


@pytest.mark.parametrize("num_rows", [0, 3, 5])
def test_wrong_number_of_rows_is_refused(num_rows):
    with pytest.raises(ValueError, match=f"{num_rows} rows for a response of 4 tokens"):
        to_student_rows(topk_of(num_rows), num_prompt=2, num_response=4)


def test_ids_without_their_log_probs_are_refused():
    topk = topk_of(4)
    with pytest.raises(ValueError, match="4 rows for a response of 4 tokens"):
        to_student_rows(TopK(topk.ids, topk.log_probs[:, :2]), num_prompt=2, num_response=4)


def test_placeholders_have_the_shape_and_type_of_rows():
    rows = to_student_rows(topk_of(4), num_prompt=2, num_response=4)
    for blank, row in zip(no_rows(num_prompt=2, num_response=4, top_k=3), rows, strict=True):
        assert (blank.shape, blank.dtype) == (row.shape, row.dtype)
        assert not blank.any()


def by_hand(prompt_lengths, response_lengths):
    positions, start = [], 0
    for num_prompt, num_response in zip(prompt_lengths, response_lengths, strict=True):
        positions += range(start + num_prompt - 1, start + num_prompt + num_response - 1)
        start += num_prompt + num_response
    return positions


@pytest.mark.parametrize(
    ("prompt_lengths", "response_lengths"),
    [
        ([3], [4]),
        ([1, 1], [1, 1]),
        ([4, 1, 2], [3, 1, 5]),
        ([2, 3, 4], [0, 2, 0]),
        ([2, 2], [0, 0]),
        ([1, 7, 2, 5], [6, 1, 1, 3]),
    ],
)
def test_positions_in_a_packed_batch_match_a_loop(prompt_lengths, response_lengths):
    got = response_rows(jagged(prompt_lengths), jagged(response_lengths))
    assert got.tolist() == by_hand(prompt_lengths, response_lengths)


def test_positions_find_what_was_placed_there():
    # Both functions of the module agree: rows spread over two sequences, packed, and gathered again.
    first, second = topk_of(3), TopK(topk_of(2).ids + 100, topk_of(2).log_probs)
    packed = torch.cat(
        [
            to_student_rows(first, num_prompt=2, num_response=3)[0],
            to_student_rows(second, num_prompt=4, num_response=2)[0],
        ]
    )
    gathered = packed[response_rows(jagged([2, 4]), jagged([3, 2]))]
    assert gathered.tolist() == [*first.ids.tolist(), *second.ids.tolist()]
