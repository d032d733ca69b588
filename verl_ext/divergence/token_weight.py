"""Which tokens count, and how much: weights by position, the entropy gate, and the two clips.

The weights of positions are known before any model runs and multiply `Tokens.weights`; the gate and the clips depend on
values and act inside linear_divergence.
"""

import torch
from torch import Tensor


def first_tokens(*, response_mask: Tensor, num_tokens: int) -> Tensor:
    """1 at the first `num_tokens` counted tokens of every response, 0 elsewhere; [B, R] like the mask."""
    return _chosen(response_mask, _ordinal(response_mask) <= num_tokens)


def last_tokens(*, response_mask: Tensor, num_tokens: int) -> Tensor:
    """1 at the last `num_tokens` counted tokens of every response, 0 elsewhere; [B, R] like the mask.

    A shorter response counts whole. Source: the positions of OPRD, arXiv 2606.06021, Eq. 6.
    """
    ordinal = _ordinal(response_mask)
    return _chosen(response_mask, ordinal > ordinal[:, -1:] - num_tokens)


def entropy_gate(*, teacher_entropy: Tensor, threshold: float) -> Tensor:
    """1 where the teacher's entropy exceeds the threshold, 0 elsewhere. Source: EOPD, arXiv 2603.07079, Eq. 9."""
    return (teacher_entropy > threshold).to(teacher_entropy.dtype)


def clip_entries(*, terms: Tensor, derivatives: Tensor, maximum: float) -> None:
    """Clip every entry's term at a maximum, in place; a clipped entry has no derivative.

    OPSD's operator (arXiv 2601.18734): entries, unlike their sum, are often negative and stay so, and the clipped sum
    can be negative.
    """
    derivatives.masked_fill_(terms > maximum, 0)
    terms.clamp_(max=maximum)


def clip_positions(*, values: Tensor, maximum: float) -> tuple[Tensor, Tensor]:
    """Clip summed values [n] at a maximum; the second tensor is 1 where that happened: no gradient there."""
    return values.clamp(max=maximum), (values > maximum).to(values.dtype)


def _ordinal(response_mask: Tensor) -> Tensor:
    """1 at the first counted token, 2 at the second, ...; the last column is each response's length."""
    return response_mask.long().cumsum(-1)


def _chosen(response_mask: Tensor, weights: Tensor) -> Tensor:
    return torch.where(response_mask.bool(), weights.to(torch.float32), torch.zeros((), device=weights.device))
