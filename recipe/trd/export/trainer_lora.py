"""The LoRA adapters of a run: how they act on the base weights, and which tensors of a checkpoint are theirs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor

from recipe.trd.export.checkpoint import PEFT_PREFIX, Checkpoint, NotProved


def is_adapter(name: str) -> bool:
    """Whether a tensor of the trainer's model belongs to an adapter."""
    return ".lora_" in name


def lora_config(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> LoraConfig | None:
    """How the adapters in the shards act on the base weights; None for a run that trained all parameters.

    Rank and alpha as verl wrote them beside the shards, the rest from the run's configuration, or from the adapter
    that the run started from. Modules are read off the names of the tensors where the configuration is not there.

    Raises:
        NotProved: the run trained adapters, and the shards hold none.
        ValueError: rank or alpha are unknown, or two files disagree about them.
    """
    if not any(map(is_adapter, tensors)):
        if checkpoint.has_adapters() or any(name.startswith(PEFT_PREFIX) for name in tensors):
            raise NotProved(
                f"the run trained adapters, and the shards in {checkpoint.folder} hold none: they were dropped, and "
                "what is left is the base model; take the shards as the trainer wrote them"
            )
        return None
    earlier = checkpoint.setting("actor_rollout_ref.model.lora_adapter_path")
    if earlier:
        if not (Path(earlier) / "adapter_config.json").is_file():
            raise ValueError(
                f"the run went on from the adapter {earlier}, whose adapter_config.json is not there any more"
            )
        config = LoraConfig.from_pretrained(earlier)
        config.inference_mode = False
    else:
        config = LoraConfig(
            r=_agreed(checkpoint, "r", "lora_rank"),
            lora_alpha=_agreed(checkpoint, "lora_alpha", "lora_alpha"),
            bias="none",
            **_targets(checkpoint, tensors),
        )
    config.task_type = "CAUSAL_LM"
    return config


def _agreed(checkpoint: Checkpoint, metadata_key: str, config_key: str) -> int:
    """A wrong alpha cannot be seen from log-probs: all files have to name the same value."""
    key = f"actor_rollout_ref.model.{config_key}"
    named = {
        "lora_train_meta.json": checkpoint.lora_metadata().get(metadata_key),
        f"config.yaml ({key})": checkpoint.setting(key),
    }
    known = {place: int(value) for place, value in named.items() if value is not None}
    if not known:
        raise ValueError(
            f"{metadata_key} of the adapters is not known: neither lora_train_meta.json beside the shards nor the "
            "run's config.yaml is there; put one of them back"
        )
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{value} in {place}" for place, value in known.items())
        raise ValueError(
            f"{metadata_key} of the adapters is {listed}: which one was trained with? Remove the wrong one"
        )
    return next(iter(known.values()))


def _targets(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments that verl passes to PEFT, or the full names of the modules that have an adapter."""
    names = ("target_modules", "target_parameters", "exclude_modules")
    model = checkpoint.setting("actor_rollout_ref.model")
    if model is not None:
        values = {name: model.get(name) for name in names}
        return {
            name: value if value is None or isinstance(value, str) else list(value) for name, value in values.items()
        }
    inner = (name.removeprefix(PEFT_PREFIX) for name in tensors if is_adapter(name))
    return {"target_modules": sorted({name.partition(".lora_")[0] for name in inner})}


def num_idle_adapters(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Number of adapters that add nothing because their B is 0, and number of all adapters."""
    all_b = [tensor for name, tensor in tensors.items() if ".lora_B" in name or ".lora_embedding_B" in name]
    return sum(not bool(tensor.any()) for tensor in all_b), len(all_b)
