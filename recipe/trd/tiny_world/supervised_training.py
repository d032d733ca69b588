"""Models of the tiny world and their supervised training on the CPU: Muon on matrices, AdamW on the rest."""

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from recipe.trd.tiny_world.world_config import ModelConfig, TrainingConfig

# A vocabulary that is not a round number is slow, and tensor-parallel engines cannot split it.
_VOCABULARY_MULTIPLE = 16
_MAX_GRADIENT_NORM = 1.0
_MIN_LR_SCALE = 0.02
_MUON_MOMENTUM = 0.95
_ADAMW_BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class Batch:
    """Token ids of prompts and of their responses, one list for each sample."""

    prompts: list[list[int]]
    responses: list[list[int]]


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks instead of returning them to the kernel; without glibc do nothing.

    Every step allocates the same large activations; the page faults of fresh ones cost a sixth of a training step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # parameter numbers of <malloc.h>
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 256 * 2**20)


def build_model(
    config: ModelConfig, *, tokenizer: PreTrainedTokenizerBase, max_position_embeddings: int, seed: int
) -> Qwen3ForCausalLM:
    """A float32 Qwen3 model with fresh weights, tied embeddings and a padded vocabulary."""
    torch.manual_seed(seed)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model_config = Qwen3Config(
        vocab_size=math.ceil(len(tokenizer) / _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.5 / math.sqrt(config.hidden_size),
        bos_token_id=None,
        **special,
    )
    model = Qwen3ForCausalLM._from_config(model_config, dtype=torch.float32, attn_implementation="sdpa")
    model.generation_config = GenerationConfig(**special)
    return model


def response_loss(model: Qwen3ForCausalLM, batch: Batch, *, pad_token_id: int) -> Tensor:
    """Mean cross-entropy over all response tokens of a batch, end-of-turn tokens included, in nats. Shape []."""
    samples = [prompt + response for prompt, response in zip(batch.prompts, batch.responses, strict=True)]
    length = max(map(len, samples))
    input_ids = torch.full((len(samples), length), pad_token_id)
    response_mask = torch.zeros((len(samples), length), dtype=torch.bool)
    for index, (sample, prompt) in enumerate(zip(samples, batch.prompts, strict=True)):
        input_ids[index, : len(sample)] = torch.tensor(sample)
        response_mask[index, len(prompt) : len(sample)] = True
    # Padded on the right, and attention is causal: no real token sees padding, so no attention mask is needed.
    hidden = model.model(input_ids=input_ids[:, :-1], use_cache=False).last_hidden_state
    is_target = response_mask[:, 1:]
    return F.cross_entropy(model.lm_head(hidden[is_target]), input_ids[:, 1:][is_target])


def lr_scale(step: int, config: TrainingConfig) -> float:
    """Factor on both learning rates at a step counted from 0: linear warm-up, flat part, linear decay."""
    progress = step / config.num_steps
    decay = 1.0 if progress < config.flat_frac else (1.0 - progress) / (1.0 - config.flat_frac)
    return min(1.0, (step + 1) / config.warmup_steps) * max(_MIN_LR_SCALE, decay)


def _build_optimizers(model: Qwen3ForCausalLM, config: TrainingConfig) -> Sequence[torch.optim.Optimizer]:
    named = list(model.named_parameters())
    is_matrix = {name: parameter.ndim == 2 and "embed" not in name for name, parameter in named}
    matrices = [parameter for name, parameter in named if is_matrix[name]]
    rest = [parameter for name, parameter in named if not is_matrix[name]]
    return (
        torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=0.0, momentum=_MUON_MOMENTUM),
        torch.optim.AdamW(rest, lr=config.adamw_lr, betas=_ADAMW_BETAS, weight_decay=0.0, fused=True),
    )


def train(
    model: Qwen3ForCausalLM,
    *,
    next_batch: Callable[[], Batch],
    config: TrainingConfig,
    on_step: Callable[[int, float], None],
) -> None:
    """Train a model in place on `config.num_steps` batches.

    Args:
        model: float32, on the CPU.
        next_batch: called once a step.
        config: schedule and learning rates.
        on_step: called after each step with the number of finished steps and the loss of the step in nats.
    """
    optimizers = _build_optimizers(model, config)
    peak_lrs = [config.muon_lr, config.adamw_lr]
    pad_token_id = model.config.pad_token_id
    assert pad_token_id is not None
    model.train()
    for step in range(config.num_steps):
        for optimizer, peak_lr in zip(optimizers, peak_lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak_lr * lr_scale(step, config)
        loss = response_loss(model, next_batch(), pad_token_id=pad_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        on_step(step + 1, loss.item())
    model.eval()
