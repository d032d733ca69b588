"""Where the response tokens of a micro-batch lie in the hidden states of one rank."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ResponsePositions:
    """Positions of this rank's flattened hidden states that belong to response tokens.

    position int64 [n]: index into the hidden states, flattened to [T, d]. token int64 [n], increasing: which response
    token of the micro-batch it is, counted over all responses, 0 to sum(R) - 1.
    """

    position: Tensor
    token: Tensor


def response_positions(
    *,
    sequence_lengths: Tensor,
    response_lengths: Tensor,
    shift: int,
    width: int | None = None,
    shard: int = 0,
    num_shards: int = 1,
) -> ResponsePositions:
    """Positions of all response tokens, or of those in one shard of the packed sequence.

    Args:
        sequence_lengths: int [B], prompt and response; every prompt has at least one token.
        response_lengths: int [B].
        shift: -1 for the position that predicts a token, 0 for the position of the token.
        width: sequences are right-padded to so many tokens; None: they are packed one after the other.
        shard: this rank among the `num_shards` that hold equal slices of the packed sequence, the last one padded
            (Ulysses sequence parallelism).
        num_shards: 1 where every rank holds whole sequences.
    """
    ends = sequence_lengths.cumsum(0)
    total = int(ends[-1]) if len(ends) > 0 else 0
    if width is not None:
        ends = torch.arange(len(ends), device=ends.device) * width + sequence_lengths
    first = ends - response_lengths + shift
    before = response_lengths.cumsum(0) - response_lengths
    token = torch.arange(int(response_lengths.sum()), device=ends.device)
    position = token + torch.repeat_interleave(first - before, response_lengths)
    if num_shards == 1:
        return ResponsePositions(position=position, token=token)
    size = -(-total // num_shards)
    mine = (position >= shard * size) & (position < (shard + 1) * size)
    return ResponsePositions(position=position[mine] - shard * size, token=token[mine])


def flat(field: Tensor) -> Tensor:
    """Values of a jagged or dense field, one after the other; trailing dimensions stay."""
    return field.values() if field.is_nested else field.flatten(0, 1)


def lengths(field: Tensor) -> Tensor:
    """int64 [B]: tokens of every sample of a jagged or dense field."""
    if field.is_nested:
        return field.offsets().diff()  # type: ignore[attr-defined]  # declared for nested tensors only
    return torch.full((field.shape[0],), field.shape[1], device=field.device)


def jagged(values: Tensor, sample_lengths: Tensor) -> Tensor:
    """A jagged field [B, R] of values that lie one after the other."""
    offsets = torch.cat([sample_lengths.new_zeros(1), sample_lengths.cumsum(0)])
    return torch.nested.nested_tensor_from_jagged(values, offsets)
