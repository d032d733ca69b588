"""Log-probs of a few tokens under the trainer's weights: what a server with the same weights has to say, too."""

from dataclasses import dataclass
from typing import Any

import torch
from verl.utils.device import get_device_id

from verl_ext.engine.ema import reshard


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Token ids, and the natural log-probs of all but the first under the student."""

    token_ids: list[int]
    log_probs: list[float]
    base_log_probs: list[float] | None
    """The same without adapters; None where all weights are trained."""


def measure(engine: Any, token_ids: list[int]) -> Probe:
    """One forward pass over a few tokens; every FSDP rank calls it, each with tokens of its own.

    Args:
        engine: the student's `DistillationEngine`, with its weights on the device.
        token_ids: at least two, of one sequence.
    """
    has_adapters = bool(engine.model_config.lora_rank)
    module = engine.module
    was_training = module.training
    module.eval()
    log_probs = _log_probs(engine, token_ids)
    base = None
    if has_adapters:
        with engine.disable_adapter():
            base = _log_probs(engine, token_ids)
    module.train(was_training)
    # The next update changes the shards; nothing gathered may be left from before.
    reshard(module)
    return Probe(token_ids=token_ids, log_probs=log_probs, base_log_probs=base)


def _log_probs(engine: Any, token_ids: list[int]) -> list[float]:
    ids = torch.tensor([token_ids], device=get_device_id())
    positions = torch.arange(len(token_ids), device=ids.device).unsqueeze(0)
    with torch.no_grad(), engine.autocast():
        logits = engine.module(input_ids=ids, position_ids=positions, use_cache=False).logits[0, :-1]
    found = logits.float().log_softmax(-1).gather(-1, ids[0, 1:].unsqueeze(-1))
    return [float(value) for value in found.squeeze(-1).tolist()]
