"""Output heads: logits of a chunk of rows and the products of its gradient, in the precision of the working type.

No tensor here is larger than one chunk x vocabulary, except the head's own gradient.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from verl_ext.divergence.pointwise import LOG_ZERO
from verl_ext.divergence.spec import Head

TILE_ROWS = 16384
"""Rows of a half-precision head that are converted at a time."""


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 where one of the tensors has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def raw_logits(*, hidden: Tensor, weight: Tensor, out: Tensor) -> None:
    """out [c, V] = hidden [c, d] @ weight [V, d]^T."""
    for tile in _tiles(weight, out.dtype):
        _multiply(hidden, weight[tile].t(), out=out[:, tile])


def finish_logits(*, logits: Tensor, head: Head, num_tokens: int) -> Tensor | None:
    """Apply bias, soft-cap and temperature to raw logits in place; a bias of -inf becomes LOG_ZERO.

    Returns:
        d(finished) / d(raw) [n, V]; None where it is 1.
    """
    slope = None
    if head.bias is not None:
        logits.add_(head.bias[:num_tokens].to(logits.dtype)).clamp_(min=LOG_ZERO)
    if head.soft_cap is not None:
        logits.div_(head.soft_cap).tanh_()
        slope = 1 - logits.square()
        logits.mul_(head.soft_cap)
    if head.temperature != 1.0:
        logits.div_(head.temperature)
        slope = torch.full_like(logits[:, :1], 1 / head.temperature) if slope is None else slope.div_(head.temperature)
    if head.swapped is not None:
        logits[:, list(head.swapped)] = logits[:, list(head.swapped[::-1])]
    return slope


def hidden_gradient(*, gradient: Tensor, weight: Tensor) -> Tensor:
    """gradient [c, V] @ weight [V, d], in the gradient's type."""
    out = torch.zeros(gradient.shape[0], weight.shape[1], dtype=gradient.dtype, device=gradient.device)
    for tile in _tiles(weight, out.dtype):
        _multiply(gradient[:, tile], weight[tile], out=out, accumulate=True)
    return out


def weight_gradient(*, gradient: Tensor, hidden: Tensor, out: Tensor, accumulate: bool) -> None:
    """out [V, d] = gradient [c, V]^T @ hidden [c, d], or += with `accumulate`."""
    for tile in _tiles(out, hidden.dtype if hidden.is_cuda else out.dtype):
        _multiply(gradient[:, tile].t(), hidden, out=out[tile], accumulate=accumulate)


def _tiles(rows: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    """All rows at once, or piece by piece where a product needs a converted copy of them."""
    step = len(rows) if rows.dtype == dtype else TILE_ROWS
    return (slice(start, start + step) for start in range(0, len(rows), max(1, step)))


def _multiply(left: Tensor, right: Tensor, *, out: Tensor, accumulate: bool = False) -> None:
    """out = left @ right, or out += left @ right, summed in out's type.

    `right` may be narrower than `out`. On a CPU it is widened: the product is exact for its values. On a GPU `left` is
    narrowed to it, for the tensor cores, as every mixed-precision training step does.
    """
    if right.is_cuda and right.dtype.itemsize < out.dtype.itemsize:
        product = torch.mm(left.to(right.dtype), right, out_dtype=out.dtype)
        out.add_(product) if accumulate else out.copy_(product)
    elif accumulate:
        torch.addmm(out, left.to(out.dtype), right.to(out.dtype), out=out)
    else:
        torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)
