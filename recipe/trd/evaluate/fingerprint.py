"""Which weights are evaluated: a hash over their contents, and whether they are those of the base model.

An evaluation of a checkpoint whose training never reached the exported files looks like any other and says nothing: an
adapter that was saved beside the base weights, a merge that was forgotten, a path to the wrong folder.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FOLDER = "lora_adapter"
"""Where verl's merger leaves an adapter, beside base weights that it did not change."""

SIDE_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Files that samples depend on beside the weights."""

_CHUNK_BYTES = 16 << 20
_CHUNK_ELEMENTS = 16 << 20


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class BaseComparison:
    """How a model differs from the one it is said to be trained from, on the tensors that both have."""

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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{model} is neither a folder nor a model that the hub gives: {reason}") from error
    if not any(Path(folder).glob("*.safetensors")):
        raise ValueError(f"{model} has no *.safetensors on the hub; convert the weights to safetensors")
    return Path(folder)


def check_adapter(folder: Path, adapter: Path | None) -> None:
    """Refuse a model whose training lies in an adapter that would be left out, and an adapter that is none.

    Raises:
        ValueError: the message says which argument is missing.
    """
    beside = folder / ADAPTER_FOLDER
    if adapter is None and (beside / ADAPTER_WEIGHTS).exists():
        raise ValueError(
            f"{folder} holds base weights with an adapter beside them, and the adapter would not be evaluated: add "
            f"--adapter {beside}, or merge it into the weights; to evaluate the base, give the base model"
        )
    if adapter is not None and not (adapter / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"--adapter {adapter} holds no {ADAPTER_WEIGHTS}")


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder by name, hashed.

    Raises:
        ValueError: a file is damaged, or two files hold the same tensor.
    """
    files = sorted(folder.glob("*.safetensors"))
    found: dict[str, Tensor] = {}
    with ThreadPoolExecutor(4) as pool:
        for hashed in pool.map(lambda file: list(_hashed(file)), files):
            for name, tensor in hashed:
                if name in found:
                    raise ValueError(
                        f"tensor {name} is in {found[name].file.name} and in {tensor.file.name} of {folder}"
                    )
                found[name] = tensor
    return found


def _hashed(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Reads the format itself: the library gives bfloat16 to torch alone, and hashing needs only bytes."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(size))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no safetensors file, or a damaged one") from error
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            file.seek(8 + size + start)
            digest = hashlib.sha256(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
            left = end - start
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise ValueError(f"{path} ends before its tensor {name} does: copy it again")
                digest.update(chunk)
                left -= len(chunk)
            yield name, Tensor(path, entry["dtype"], tuple(entry["shape"]), digest.hexdigest())


def fingerprint(found: Mapping[str, Tensor]) -> str:
    """Hash over names, types, shapes and contents; the same however the tensors are spread over files."""
    return hashlib.sha256("\n".join(found[name].digest for name in sorted(found)).encode()).hexdigest()


def side_files(folder: Path) -> str:
    """Hash over configuration, tokeniser and chat template."""
    digest = hashlib.sha256()
    for name in SIDE_FILES:
        path = folder / name
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None}\n".encode())
    return digest.hexdigest()


def compare(model: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> BaseComparison:
    """Compare two models by the values of their tensors.

    Where the number formats differ, both are rounded to the narrower one first: an export in another format is no
    training.

    Raises:
        ValueError: they have no tensor in common, or one with different shapes.
    """
    common = sorted(model.keys() & base.keys())
    if not common:
        raise ValueError("model and --base have no tensor name in common: is --base the model that was trained?")
    changed, moved, total = 0, 0.0, 0.0
    for name in common:
        mine, theirs = model[name], base[name]
        if mine.shape != theirs.shape:
            raise ValueError(
                f"tensor {name} has shape {mine.shape} in the model and {theirs.shape} in --base: "
                "is --base the model that was trained?"
            )
        if mine.digest != theirs.digest:
            difference, norm = _square_distance(_read(mine, name), _read(theirs, name), name)
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


def _read(tensor: Tensor, name: str) -> "torch.Tensor":
    from safetensors import safe_open

    with safe_open(tensor.file, framework="pt") as file:
        return file.get_tensor(name)


def _square_distance(mine: "torch.Tensor", base: "torch.Tensor", name: str) -> tuple[float, float]:
    """Squared norms of the difference and of the base's tensor, in double precision, part by part."""
    narrower = min(mine.dtype, base.dtype, key=lambda dtype: dtype.itemsize)
    distance, norm = 0.0, 0.0
    for ours, theirs in zip(*(tensor.flatten().split(_CHUNK_ELEMENTS) for tensor in (mine, base)), strict=True):
        theirs = theirs.to(narrower).double()
        distance += float((ours.to(narrower).double() - theirs).square().sum())
        norm += float(theirs.square().sum())
    if not math.isfinite(distance):
        raise ValueError(f"tensor {name} holds values that are not finite: the training, or the export, went wrong")
    return distance, norm


def adapter_is_zero(adapter: Path) -> bool:
    """Whether a LoRA adapter changes nothing: all its B matrices are 0."""
    found = tensors(adapter)
    names = [name for name in found if ".lora_B." in name or ".lora_embedding_B" in name]
    return bool(names) and not any(bool(_read(found[name], name).any()) for name in names)
