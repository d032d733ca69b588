"""Batched sampling with a key-value cache, for evaluation on the CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM
from transformers.cache_utils import DynamicCache

# Selecting the unfinished responses copies the cache, so it must save enough to be worth it.
_COMPACT_BELOW_FRAC = 0.8


def _pad_left(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    length = max(map(len, prompts))
    input_ids = torch.full((len(prompts), length), pad_token_id)
    attention_mask = torch.zeros((len(prompts), length), dtype=torch.long)
    for index, prompt in enumerate(prompts):
        input_ids[index, length - len(prompt) :] = torch.tensor(prompt)
        attention_mask[index, length - len(prompt) :] = 1
    return input_ids, attention_mask


def _next_tokens(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0.0:
        return logits.argmax(-1)
    return torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator).squeeze(-1)


@torch.no_grad()
def sample(
    model: Qwen3ForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_response_tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> list[list[int]]:
    """Token ids of one response for each prompt, with the end-of-turn token if it has one.

    Args:
        model: in evaluation mode.
        prompts: token ids, of any lengths.
        max_response_tokens: a response without end-of-turn token stops here.
        temperature: 0 is greedy.
        generator: source of randomness; not used when greedy.
    """
    eos, pad = model.config.eos_token_id, model.config.pad_token_id
    assert pad is not None
    input_ids, attention_mask = _pad_left(prompts, pad)
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    indices = torch.arange(len(prompts))
    is_open = torch.ones(len(prompts), dtype=torch.bool)
    responses: list[list[int]] = [[] for _ in prompts]
    for _ in range(max_response_tokens):
        hidden = model.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        tokens = _next_tokens(model.lm_head(hidden), temperature, generator)
        for index, token in zip(indices[is_open].tolist(), tokens[is_open].tolist(), strict=True):
            responses[index].append(token)
        is_open &= tokens != eos
        if not is_open.any():
            break
        if is_open.float().mean() < _COMPACT_BELOW_FRAC:
            kept = is_open.nonzero().squeeze(-1)
            indices, tokens, is_open = indices[kept], tokens[kept], is_open[kept]
            attention_mask, position_ids = attention_mask[kept], position_ids[kept]
            cache.batch_select_indices(kept)
        attention_mask = torch.cat([attention_mask, torch.ones(len(indices), 1, dtype=torch.long)], dim=1)
        position_ids = position_ids[:, -1:] + 1
        input_ids = tokens[:, None]
    return responses
