"""Positions of response tokens in packed, padded and sliced hidden states, against loops."""

import pytest
import torch

from verl_ext.engine.positions import flat, response_positions

SHAPES = {
    "one": ([7], [4]),
    "shortest": ([2, 2], [1, 1]),
    "ragged": ([7, 2, 7, 3], [3, 1, 5, 2]),
    "empty responses": ([2, 5, 4], [0, 2, 0]),
    "no response": ([2, 2], [0, 0]),
    "no sequence": ([], []),
    "long prompt": ([1, 40, 3], [0, 2, 1]),
}
EVERY_SHAPE = pytest.mark.parametrize(("sequences", "responses"), SHAPES.values(), ids=SHAPES)
SHIFT = pytest.mark.parametrize("shift", [-1, 0])


def by_hand(sequences, responses, *, shift, width=None):
    """Positions of all response tokens, one sequence after the other."""
    positions, start = [], 0
    for num_tokens, num_response in zip(sequences, responses, strict=True):
        positions += [start + i + shift for i in range(num_tokens - num_response, num_tokens)]
        start += num_tokens if width is None else width
    return positions


def positions_of(sequences, responses, **arguments):
    return response_positions(
        sequence_lengths=torch.tensor(sequences, dtype=torch.int64),
        response_lengths=torch.tensor(responses, dtype=torch.int64),
        **arguments,
    )


@EVERY_SHAPE
@SHIFT
def test_packed(sequences, responses, shift):
    positions = positions_of(sequences, responses, shift=shift)
    assert positions.position.tolist() == by_hand(sequences, responses, shift=shift)
    assert positions.token.tolist() == list(range(sum(responses)))


@EVERY_SHAPE
@SHIFT
@pytest.mark.parametrize("spare", [0, 3])
def test_padded(sequences, responses, shift, spare):
    width = max(sequences, default=0) + spare
    positions = positions_of(sequences, responses, shift=shift, width=width)
    assert positions.position.tolist() == by_hand(sequences, responses, shift=shift, width=width)
    assert positions.token.tolist() == list(range(sum(responses)))


@EVERY_SHAPE
@SHIFT
@pytest.mark.parametrize("num_shards", [2, 3, 8])
def test_shards_partition_all_tokens(sequences, responses, shift, num_shards):
    size = -(-sum(sequences) // num_shards)
    shards = [
        positions_of(sequences, responses, shift=shift, shard=shard, num_shards=num_shards)
        for shard in range(num_shards)
    ]
    assert [token for positions in shards for token in positions.token.tolist()] == list(range(sum(responses)))
    everywhere = [shard * size + at for shard, positions in enumerate(shards) for at in positions.position.tolist()]
    assert everywhere == by_hand(sequences, responses, shift=shift)
    assert all(0 <= at < size for positions in shards for at in positions.position.tolist())


def test_a_position_and_the_token_it_predicts_may_lie_in_different_shards():
    before, at = (
        [positions_of([8], [4], shift=shift, shard=shard, num_shards=2).token.tolist() for shard in range(2)]
        for shift in (-1, 0)
    )
    assert before == [[0], [1, 2, 3]]
    assert at == [[], [0, 1, 2, 3]]


def test_positions_find_what_lies_there():
    # Hidden states that say whose token of which sequence they are.
    sequences, responses = SHAPES["ragged"]
    packed = [(sample, i) for sample, num in enumerate(sequences) for i in range(num)]
    positions = positions_of(sequences, responses, shift=0)
    expected = [(sample, i) for sample, num in enumerate(sequences) for i in range(num - responses[sample], num)]
    assert [packed[at] for at in positions.position.tolist()] == expected


def test_flat_reads_jagged_and_dense_fields_alike():
    values = torch.arange(12).view(2, 3, 2)
    assert flat(values).tolist() == flat(torch.nested.as_nested_tensor(list(values), layout=torch.jagged)).tolist()
