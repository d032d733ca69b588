"""Where the response tokens of a micro-batch lie in the hidden states of one rank."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of this rank's flattened hidden states that belong to response tokens.

    position int64 [n]: index into the hidden states, flattened to [T, d]. token int64 [n], increasing: which response
    token of the micro-batch it is, counted over all responses, 0 to sum(R) - 1.
    """

    position: Tensor
    token: Tensor


def response_rows(
    *,
    sequence_lengths: Tensor,
    response_lengths: Tensor,
    shift: int,
    width: int | None = None,
    shard: int = 0,
    num_shards: int = 1,
) -> Rows:
    """Rows of all response tokens, or of those in one shard of the packed sequence.

    Args:
        sequence_lengths: int [B], prompt and response; every prompt has at least one token.
        response_lengths: int [B].
        shift: -1 for the row that predicts a token, 0 for the row at the token.
        width: sequences are right-padded to so many tokens; None: they are packed one behind the other.
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
        return Rows(position=position, token=token)
    size = -(-total // num_shards)
    mine = (position >= shard * size) & (position < (shard + 1) * size)
    return Rows(position=position[mine] - shard * size, token=token[mine])
