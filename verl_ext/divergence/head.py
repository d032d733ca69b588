"""Output heads: logits of a chunk of rows and the products of its gradient, in the precision of the working type.

No tensor here is larger than one chunk x vocabulary, except the head's own gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager

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
    on_tensor_cores = out.is_cuda and hidden.dtype == weight.dtype
    for tile in _tiles(weight, weight.dtype if on_tensor_cores else out.dtype):
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


def gradient_dtype(head: Head) -> torch.dtype:
    """Type of d(loss)/d(logits): what its products with hidden states and head take, and what holds its range.

    On a GPU bfloat16 beside bfloat16, for the tensor cores; float16 would lose what is below 6e-8, as most of it is.
    """
    pair = {head.hidden.dtype, head.weight.dtype}
    if head.hidden.is_cuda and pair == {torch.bfloat16}:
        return torch.bfloat16
    return working_dtype(head.hidden, head.weight)


def hidden_gradient(*, gradient: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient [c, V] @ weight [V, d], summed in and returned as `dtype`."""
    out = torch.zeros(gradient.shape[0], weight.shape[1], dtype=dtype, device=gradient.device)
    for tile in _tiles(weight, gradient.dtype):
        _multiply(gradient[:, tile], weight[tile], out=out, accumulate=True)
    return out


def weight_gradient(*, gradient: Tensor, hidden: Tensor, out: Tensor, accumulate: bool) -> None:
    """out [V, d] = gradient [c, V]^T @ hidden [c, d], or += with `accumulate`, summed in out's type."""
    # Beside a hidden state of its own type nothing is converted; else piece by piece.
    for tile in _tiles(out, out.dtype if hidden.dtype == gradient.dtype else hidden.dtype):
        _multiply(gradient[:, tile].t(), hidden, out=out[tile], accumulate=accumulate)


def _tiles(rows: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    """All rows at once, or piece by piece where a product needs a converted copy of them."""
    step = len(rows) if rows.dtype == dtype else TILE_ROWS
    return (slice(start, start + step) for start in range(0, len(rows), max(1, step)))


def _multiply(left: Tensor, right: Tensor, *, out: Tensor, accumulate: bool = False) -> None:
    """out = left @ right, or out += left @ right, summed in out's type.

    On a GPU two half-precision factors go to the tensor cores as they are. Otherwise both are widened to out's type
    and multiplied in it, never in TF32, whatever the process allows for its models.
    """
    if out.is_cuda and left.dtype == right.dtype and left.dtype.itemsize < out.dtype.itemsize:
        if accumulate:
            torch.ops.aten.addmm.dtype_out(out, left, right, out.dtype, out=out)
        else:
            torch.ops.aten.mm.dtype_out(left, right, out.dtype, out=out)
        return
    left, right = left.to(out.dtype), right.to(out.dtype)
    with _full_precision(out):
        if accumulate:
            torch.addmm(out, left, right, out=out)
        else:
            torch.mm(left, right, out=out)


@contextmanager
def _full_precision(out: Tensor) -> Iterator[None]:
    if not out.is_cuda:
        yield
        return
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)
