"""Which weights are evaluated: where they are, and whether they are those of the base model.

An evaluation of weights that are not the trained ones looks like any other: an adapter that was saved next to the base
weights and not loaded, a merge that was forgotten, a path to the wrong folder.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_ext.runtime.errors import first_line
from verl_ext.runtime.weight_files import HashedTensor, hash_tensors

if TYPE_CHECKING:
    import torch

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FOLDER = "lora_adapter"
"""Where verl's merger leaves an adapter, next to base weights that it did not change."""

SIDE_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Other files of a model that its samples depend on."""

_CHUNK_ELEMENTS = 16 << 20


@dataclass(frozen=True)
class BaseComparison:
    """How a model differs from the one that it was trained from, on the tensors that both have."""

    equal: bool
    num_tensors: int
    num_changed: int
    relative_change: float
    """Norm of the difference over norm of the base, over the tensors that changed."""
    only_in_model: tuple[str, ...]
    only_in_base: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def resolve(model: str) -> Path:
    """Folder with the weights of a model: a path, a step of a training run, or a name on the Hugging Face hub.

    Raises:
        ValueError: there are no weights in safetensors; the message says how to get them.
    """
    path = Path(model)
    if not path.exists():
        return _from_hub(model)
    if not path.is_dir():
        raise ValueError(f"{model} is a file; give the folder of a model")
    for folder in (path, path / "huggingface", path / "actor" / "huggingface"):
        if any(folder.glob("*.safetensors")):
            return folder
    shards = next(iter([*path.glob("model_world_size_*"), *path.glob("actor/model_world_size_*")]), None)
    if shards is not None:
        raise ValueError(
            f"{model} holds the trainer's shards, no model yet: python -m recipe.trd.export {model} DIR, then evaluate "
            "DIR (or train with hf_model in actor_rollout_ref.actor.checkpoint.save_contents)"
        )
    raise ValueError(f"{model} holds no *.safetensors; convert the weights to safetensors")


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(model, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise ValueError(f"{model} is neither a folder nor a model that the hub gives: {reason}") from error
    if not any(Path(folder).glob("*.safetensors")):
        raise ValueError(f"{model} has no *.safetensors on the hub; convert the weights to safetensors")
    return Path(folder)


def check_adapter(folder: Path, adapter: Path | None) -> None:
    """Refuse a model whose adapter would not be evaluated, and a folder that holds no adapter.

    Raises:
        ValueError: the message says which argument is missing.
    """
    unused = folder / ADAPTER_FOLDER
    if adapter is None and (unused / ADAPTER_WEIGHTS).exists():
        raise ValueError(
            f"{folder} holds base weights with an adapter beside them, and the adapter would not be evaluated: add "
            f"--adapter {unused}, or merge it into the weights; to evaluate the base, give the base model"
        )
    if adapter is not None and not (adapter / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"--adapter {adapter} holds no {ADAPTER_WEIGHTS}")


def side_files(folder: Path) -> str:
    """Hash over configuration, tokenizer and chat template."""
    digest = hashlib.sha256()
    for name in SIDE_FILES:
        path = folder / name
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None}\n".encode())
    return digest.hexdigest()


def compare(model: Mapping[str, HashedTensor], base: Mapping[str, HashedTensor]) -> BaseComparison:
    """Compare two models by the values of their tensors.

    Where the number formats differ, both are rounded to the narrower one first: an export in another format alone is
    not a difference.

    Args:
        model: its tensors by name, hashed in full.
        base: likewise.

    Raises:
        ValueError: they have no tensor in common, or one with different shapes.
    """
    common = sorted(model.keys() & base.keys())
    if not common:
        raise ValueError("model and --base have no tensor name in common: is --base the model that was trained?")
    changed, moved, total = 0, 0.0, 0.0
    for name in common:
        of_model, of_base = model[name], base[name]
        if of_model.shape != of_base.shape:
            raise ValueError(
                f"tensor {name} has shape {of_model.shape} in the model and {of_base.shape} in --base: "
                "is --base the model that was trained?"
            )
        if of_model.digest != of_base.digest:
            difference, norm = _square_distance(_read(of_model, name), _read(of_base, name), name)
            changed += difference > 0
            moved += difference
            total += norm if difference else 0.0
    return BaseComparison(
        equal=changed == 0,
        num_tensors=len(common),
        num_changed=changed,
        relative_change=math.sqrt(moved / total) if total else 0.0,
        only_in_model=tuple(sorted(model.keys() - base.keys())),
        only_in_base=tuple(sorted(base.keys() - model.keys())),
    )


def _read(tensor: HashedTensor, name: str) -> "torch.Tensor":
    from safetensors import safe_open

    with safe_open(tensor.file, framework="pt") as file:
        return file.get_tensor(name)


def _square_distance(model: "torch.Tensor", base: "torch.Tensor", name: str) -> tuple[float, float]:
    """Squared norms of the difference and of the base's tensor, in double precision, part by part."""
    narrower = min(model.dtype, base.dtype, key=lambda dtype: dtype.itemsize)
    distance, norm = 0.0, 0.0
    for of_model, of_base in zip(*(tensor.flatten().split(_CHUNK_ELEMENTS) for tensor in (model, base)), strict=True):
        rounded_base = of_base.to(narrower).double()
        distance += float((of_model.to(narrower).double() - rounded_base).square().sum())
        norm += float(rounded_base.square().sum())
    if not math.isfinite(distance):
        raise ValueError(f"tensor {name} holds values that are not finite: the training, or the export, went wrong")
    return distance, norm


def adapter_is_zero(adapter: Path) -> bool:
    """Whether a LoRA adapter has no effect: all its B matrices are 0."""
    found = hash_tensors(adapter)
    names = [name for name in found if ".lora_B." in name or ".lora_embedding_B" in name]
    return bool(names) and not any(bool(_read(found[name], name).any()) for name in names)
