"""What every response token weighs in the loss, so that a loss is a plain sum over tokens."""

from typing import Any

import torch
from torch import Tensor


def token_weights(
    mask: Tensor,
    *,
    loss_agg_mode: str,
    num_tokens: int,
    num_sequences: int,
    num_ranks: int,
    loss_scale_factor: float | None,
) -> Tensor:
    """verl's `agg_loss` as weights: sum_t weight[t] * loss[t] is the loss of this micro-batch.

    Sums over the micro-batches of all ranks, averaged over the ranks as FSDP does with gradients, give the loss of the
    global batch, however it was cut.

    Args:
        mask: jagged [B, R], 1 for tokens that count.
        loss_agg_mode: `actor.loss_agg_mode` of verl.
        num_tokens: tokens that count in the global batch; 0 gives weights 0.
        num_sequences: sequences in the global batch, masked ones included.
        num_ranks: over which gradients are averaged.
        loss_scale_factor: of `seq-mean-token-sum-norm`, tokens.

    Returns:
        [sum R], float32, on the mask's device.

    Raises:
        ValueError: a mode that verl does not know.
    """
    jagged: Any = mask  # torch declares `offsets` for nested tensors only
    values, lengths = mask.values().to(torch.float32), jagged.offsets().diff()
    if loss_agg_mode == "token-mean":
        return values * (num_ranks / max(1, num_tokens))
    if loss_agg_mode == "token-sum":
        return values * num_ranks
    if loss_agg_mode == "seq-mean-token-sum":
        return values * (num_ranks / num_sequences)
    if loss_agg_mode == "seq-mean-token-sum-norm" and loss_scale_factor is not None:
        return values * (num_ranks / num_sequences / loss_scale_factor)
    if loss_agg_mode == "seq-mean-token-mean":
        sequence = torch.repeat_interleave(torch.arange(len(lengths), device=values.device), lengths)
        counts = values.new_zeros(len(lengths)).index_add_(0, sequence, values)
        return values / counts.clamp_min(1)[sequence] * (num_ranks / num_sequences)
    raise ValueError(f"actor.loss_agg_mode={loss_agg_mode} with loss_scale_factor={loss_scale_factor}")
