"""Writes the model or adapter of a checkpoint; computes the log-probs of the trainer's model on the held-out text."""

from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from recipe.trd.export import checkpoint as checkpoints
from recipe.trd.export import compared_models, proof, trainer_lora
from recipe.trd.export.export_inputs import ExportInputs, ExportPlan


@dataclass(frozen=True, kw_only=True)
class WrittenExport:
    """What was written, and the log-probs of the trainer's model."""

    kind: str
    """adapter, merged, or full: the run trained all parameters."""
    dtype: torch.dtype
    exact: bool
    """Whether nothing was rounded."""
    adapters: dict[str, Any] | None
    trainer: Tensor
    """Log-probs [N, V] of the trainer's model."""
    merged: Tensor | None
    """Log-probs [N, V] of the merged weights before they were rounded; None where nothing was merged or rounded."""


def write(plan: ExportPlan, inputs: ExportInputs, folder: Path) -> WrittenExport:
    """Compute the log-probs of the trainer's model, and write it; one model is in memory at a time.

    Raises:
        ValueError: the checkpoint does not fit together, or there is no adapter to write.
        NotProved: its adapters are gone.
    """
    tensors = checkpoints.tensors(inputs.checkpoint)
    adapters = trainer_lora.lora_config(inputs.checkpoint, tensors)
    if plan.adapter_only and adapters is None:
        raise ValueError("--adapter-only: the run trained all parameters, there is no adapter; leave it out")
    idle, num_adapters = trainer_lora.num_idle_adapters(tensors)
    of_export = [
        value.dtype for name, value in tensors.items() if trainer_lora.is_adapter(name) or not plan.adapter_only
    ]
    stored = reduce(torch.promote_types, of_export)
    dtype = plan.dtype or (stored if plan.adapter_only else compared_models.dtype_of(inputs.base))
    merges = adapters is not None and not plan.adapter_only
    exact = dtype == torch.float32 or (dtype == stored and not merges)
    model = compared_models.trainer_model(inputs.checkpoint, tensors, adapters, inputs.base)
    del tensors
    trainer, merged = held_out_log_probs(plan, inputs, model), None
    if merges:
        model = compared_models.merged(model)
        merged = None if exact else held_out_log_probs(plan, inputs, model)
    if plan.adapter_only:
        compared_models.write_adapter(model, folder, dtype=dtype, base=inputs.base_name)
    else:
        compared_models.write_model(model, folder, dtype=dtype, side_files=inputs.checkpoint.side_files)
    return WrittenExport(
        kind="merged" if merges else "adapter" if plan.adapter_only else "full",
        dtype=dtype,
        exact=exact,
        adapters=None
        if adapters is None
        else {**_lora_settings(adapters), "num_adapters": num_adapters, "num_idle": idle},
        trainer=trainer,
        merged=merged,
    )


def held_out_log_probs(plan: ExportPlan, inputs: ExportInputs, model: Any) -> Tensor:
    """Log-probs [N, V] of a model at the N compared tokens of the held-out text."""
    return proof.log_probs(model, inputs.held_out.texts, device=plan.device)


def _lora_settings(adapters: LoraConfig) -> dict[str, Any]:
    modules = adapters.target_modules
    return {
        "r": adapters.r,
        "lora_alpha": adapters.lora_alpha,
        "target_modules": modules if modules is None or isinstance(modules, str) else sorted(modules),
    }
