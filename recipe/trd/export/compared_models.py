"""The models that are compared: the trainer's as in the shards, its adapters merged, what was written, and the base.

All compute in float32, whatever their weights were rounded to: what differs is then the weights.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from recipe.trd.export.checkpoint import Checkpoint, NotProved
from recipe.trd.export.trainer_lora import is_adapter


def trainer_model(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], adapters: LoraConfig | None, base: Path
) -> Any:
    """The model as it was trained: the shards' tensors in its modules, adapters beside the weights that they act on.

    Shards that hold adapters only (`save_lora_only`) act on the base model's weights.

    Raises:
        NotProved: a weight is no number.
        ValueError: the shards lack a tensor of the model, or hold one that it has not.
    """
    if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise NotProved(
            f"{broken[0]} and {len(broken) - 1} more hold values that are no numbers: the training diverged"
        )
    config = AutoConfig.from_pretrained(checkpoint.side_files)
    only_adapters = all(map(is_adapter, tensors))
    model: Any
    if only_adapters:
        model = AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.float32)
    else:
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config)
    if adapters is not None:
        model = get_peft_model(model, adapters)
        _name_briefly(model)
    try:
        found = model.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the shards do not fit the model that they belong to: {error}") from error
    missing = [name for name in found.missing_keys if is_adapter(name) or not only_adapters]
    if missing or found.unexpected_keys:
        raise ValueError(
            f"the shards do not fit the model that they belong to: they lack {missing[:3]} ({len(missing)}) and have "
            f"{found.unexpected_keys[:3]} ({len(found.unexpected_keys)}) besides"
        )
    _tie(model)
    return computing(model)


def _name_briefly(model: Any) -> None:
    """Name adapted modules as people do (q_proj), where that means the same: PEFT lists every one by its full name."""
    if model.peft_config["default"].target_parameters:
        return
    modules = dict(model.base_model.model.named_modules())
    adapted = {name for name, module in modules.items() if isinstance(module, LoraLayer)}
    brief = {name.rpartition(".")[2] for name in adapted}
    if {name for name in modules if name.rpartition(".")[2] in brief} == adapted:
        model.peft_config["default"].target_modules = brief


def _tie(model: Any) -> None:
    """One tensor for embedding and head, where they are one; the shards name it twice."""
    if not model.config.get_text_config().tie_word_embeddings:
        return
    embedding, head = (getter().weight for getter in (model.get_input_embeddings, model.get_output_embeddings))
    if not torch.equal(embedding, head):
        raise ValueError(
            "embedding and output head are one tensor by the model's configuration, and two that differ in the shards: "
            "the training pulled them apart, and a model in this format can hold only one"
        )
    model.tie_weights()


def computing(model: Any) -> Any:
    """The model in float32, ready for forward passes."""
    return model.float().eval().requires_grad_(False)


def merged(model: PeftModel) -> PreTrainedModel:
    """The base weights plus what the adapters add to them, in float32; consumes the model.

    Raises:
        ValueError: the sum is not finite.
    """
    whole: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    return whole


def write_model(model: PreTrainedModel, out: Path, *, dtype: torch.dtype, side_files: Path) -> None:
    """Write weights, configuration, generation configuration and tokenizer in Hugging Face's format.

    Args:
        model: in float32; consumed.
        out: exists.
        dtype: that the weights are rounded to.
        side_files: configuration and tokenizer as the trainer wrote them; weights beside them are not copied.
    """
    for path in side_files.iterdir():
        if path.is_file() and ".safetensors" not in path.name and path.suffix not in (".bin", ".pt"):
            shutil.copyfile(path, out / path.name)
    # verl leaves its own override in the file; whoever loads the model chooses.
    vars(model.config).pop("attn_implementation", None)
    if (side_files / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(side_files)
    rounded: Any = model.to(dtype)  # type: ignore[arg-type]
    rounded.save_pretrained(out)


def write_adapter(model: PeftModel, out: Path, *, dtype: torch.dtype, base: str) -> None:
    """Write the adapter as a PEFT folder.

    Args:
        model: in float32.
        out: exists.
        dtype: that the adapter's weights are rounded to.
        base: model that it is for, as the run names it.
    """
    model.peft_config["default"].base_model_name_or_path = base
    model.peft_config["default"].inference_mode = True
    state = {name: value.to(dtype) for name, value in model.state_dict().items() if is_adapter(name)}
    model.save_pretrained(str(out), state_dict=state, save_embedding_layers=False)
    # PEFT's template of a model card, which nobody filled in.
    (out / "README.md").unlink(missing_ok=True)


def written_model(out: Path, *, dtype: torch.dtype) -> Any:
    """What was written, loaded as users will load it.

    Raises:
        NotProved: it loads in another type than it was written in.
    """
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    if model.dtype != dtype:
        raise NotProved(f"the weights were written as {dtype} and load as {model.dtype}")
    return computing(model)


def base_model(base: Path, *, dtype: torch.dtype) -> Any:
    """The base of the run, with its weights rounded to a type."""
    return computing(AutoModelForCausalLM.from_pretrained(base, dtype=dtype))


def base_with_adapter(base: Path, out: Path) -> Any:
    """The base of the run with the adapter that was written, as users will load them."""
    return computing(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), out))


def dtype_of(base: Path) -> torch.dtype:
    """The type of a model's weights, by its configuration."""
    config: PretrainedConfig = AutoConfig.from_pretrained(base)
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
