"""Attention over packed sequences without the package flash-attn, and without a [tokens, tokens] mask.

Importing this module registers it with transformers as `packed`; verl imports it in every worker that loads the model
(`actor_rollout_ref.model.external_lib`). On a GPU in half precision it is PyTorch's own variable-length kernel, that
of FlashAttention 2; elsewhere PyTorch's attention, sequence by sequence.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface

NAME = "packed"
"""What `attn_implementation` calls it."""

_bounds = WeakTensorKeyDictionary()
"""Where sequences start and end, by the position ids of a forward pass, which all layers share."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_ids: Tensor | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Causal attention in each of the packed sequences; a position id of 0 starts one.

    Args:
        module: the attention layer.
        query: [1, heads, tokens, d]; key and value have as many heads or a divisor of them.
        attention_mask: None; padding is not for this one.
        scaling: of the scores; None is 1 / sqrt(d).
        dropout: none.
        position_ids: [1, tokens].
        sliding_window: a token sees that many tokens, itself among them.

    Returns:
        [1, tokens, heads, d], and no weights.

    Raises:
        ValueError: several rows, a mask, a cap of the scores or dropout: settings that need another attention.
    """
    _refuse_what_it_is_not(query, attention_mask, position_ids, dropout, more)
    assert position_ids is not None, "refused above"
    on_device, ends = _bounds_of(position_ids)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        tensors = [one[0].transpose(0, 1) for one in (query, key, value)]
        return _with_kernel(tensors, on_device, ends, scaling, sliding_window).unsqueeze(0), None
    parts = [
        _one_sequence(query[:, :, start:end], key[:, :, start:end], value[:, :, start:end], scaling, sliding_window)
        for start, end in pairwise(ends)
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


def _refuse_what_it_is_not(
    query: Tensor, mask: Tensor | None, position_ids: Tensor | None, dropout: float, more: dict[str, Any]
) -> None:
    wrong = {
        "several rows": len(query) != 1,
        "an attention mask": mask is not None,
        "no position ids": position_ids is None,
        "dropout": dropout > 0,
        "a cap of the scores": more.get("softcap") is not None,
        "attention sinks": more.get("s_aux") is not None,
    }
    if found := [text for text, is_so in wrong.items() if is_so]:
        raise ValueError(
            f"attn_implementation={NAME} has no way with {found[0]}: it is for packed sequences of one row "
            "(actor_rollout_ref.model.use_remove_padding=true); set "
            "actor_rollout_ref.model.override_config.attn_implementation=sdpa, or install flash-attn"
        )


def _bounds_of(position_ids: Tensor) -> tuple[Tensor, list[int]]:
    """0, the ends of all sequences: int32 on the device, and as numbers; looked up once in a forward pass."""
    if position_ids not in _bounds:
        flat = position_ids.reshape(-1)
        starts = (flat == 0).nonzero().squeeze(-1)
        bounds = torch.cat([starts.new_zeros(1), starts[starts > 0], starts.new_tensor([len(flat)])]).int()
        _bounds[position_ids] = bounds, bounds.tolist()
    return _bounds[position_ids]


def _with_kernel(
    tensors: list[Tensor], bounds: Tensor, ends: list[int], scaling: float | None, sliding_window: int | None
) -> Tensor:
    """[tokens, heads, d]. Heads of keys and values are repeated: older PyTorch wants as many of them as of queries."""
    from torch.nn.attention.varlen import varlen_attn

    query, *others = tensors
    key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in others)
    longest = max(end - start for start, end in pairwise(ends))
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    out = varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scaling, window_size=window)
    assert isinstance(out, Tensor), "nothing beside the output was asked for"
    return out


def _one_sequence(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, sliding_window: int | None
) -> Tensor:
    """[1, heads, tokens, d]."""
    length = query.shape[2]
    if sliding_window is None or length <= sliding_window:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    seen = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - sliding_window)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling, enable_gqa=True)


AttentionInterface.register(NAME, packed_attention)
