"""Reads a checkpoint of verl's FSDP engine: whole tensors from the shards of any number of ranks."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

# Importing it also tells torch.load that DTensors are data, not code.
from torch.distributed.tensor import DTensor, Shard

from verl_ext.runtime.errors import first_line

_SHARD = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
_STEP = re.compile(r"global_step_(\d+)")

PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the name of every tensor of the model that it wraps."""


class NotProved(Exception):
    """The checkpoint or the export does not hold what was trained; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """One step of a run."""

    folder: Path
    """With the shards, and `huggingface/` with configuration and tokenizer."""
    world_size: int
    step: int | None
    run_dir: Path | None
    """Folder of the run; None where the checkpoint was taken out of it."""
    config: DictConfig
    """The run's `config.yaml`; empty where there is none."""

    @property
    def side_files(self) -> Path:
        """Folder with the model's configuration and its tokenizer."""
        return self.folder / "huggingface"

    def setting(self, key: str) -> Any:
        """A value of the run's configuration; None where it is not known."""
        return OmegaConf.select(self.config, key)

    def has_adapters(self) -> bool:
        """Whether adapters were trained, by the configuration of the run and the files beside the shards."""
        model = "actor_rollout_ref.model"
        configured = self.setting(f"{model}.lora_rank") or self.setting(f"{model}.lora_adapter_path")
        return bool(configured) or "r" in self.lora_metadata()

    def lora_metadata(self) -> dict[str, Any]:
        """Rank `r` and `lora_alpha` as verl wrote them beside the shards; empty for other runs.

        Raises:
            ValueError: the file is damaged.
        """
        return _object(self.folder / "lora_train_meta.json")


def find(path: Path) -> Checkpoint:
    """The checkpoint at a path: `<run>/global_step_<n>`, or the folder `actor` in it.

    Raises:
        ValueError: there is none, or ranks are missing.
    """
    folder = next((place for place in (path, path / "actor") if any(_shards(place))), None)
    if folder is None:
        steps = sorted(place.name for place in path.glob("global_step_*"))
        hint = f"; give one of its steps: {', '.join(steps)}" if steps else ""
        raise ValueError(
            f"{path} holds no model_world_size_*_rank_*.pt, as a checkpoint of verl's FSDP engine does{hint}"
        )
    step_dir = folder.parent if folder.name == "actor" else folder
    found = _STEP.fullmatch(step_dir.name)
    run_dir = step_dir.parent if found else None
    settings = run_dir / "config.yaml" if run_dir else None
    config = OmegaConf.load(settings) if settings and settings.is_file() else OmegaConf.create()
    if not (folder / "huggingface" / "config.json").is_file():
        raise ValueError(f"{folder}/huggingface has no config.json, which verl writes beside its shards: copy it again")
    assert isinstance(config, DictConfig)
    return Checkpoint(
        folder=folder,
        world_size=_world_size(folder),
        step=int(found[1]) if found else None,
        run_dir=run_dir,
        config=config,
    )


def _shards(folder: Path) -> Iterable[re.Match[str]]:
    return (found for file in folder.glob("model_world_size_*") if (found := _SHARD.fullmatch(file.name)))


def _world_size(folder: Path) -> int:
    """Number of ranks that wrote the shards, all of which have to be there."""
    ranks = sorted({(int(found[1]), int(found[2])) for found in _shards(folder)})
    sizes = {size for size, _ in ranks}
    named = _object(folder / "fsdp_config.json").get("world_size")
    if named is None and len(sizes) > 1:
        raise ValueError(
            f"{folder} has shards of {sorted(sizes)} ranks and no fsdp_config.json: which are this step's?"
        )
    size = int(named) if named is not None else sizes.pop()
    missing = [rank for rank in range(size) if (size, rank) not in ranks]
    if missing:
        raise ValueError(
            f"{folder}: of {size} ranks, the shards of {missing} are missing; copy them from their machine"
        )
    return size


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object")
    return value


def tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All tensors of the trainer's model by the trainer's names, whole, in the type they were saved in.

    Raises:
        ValueError: a shard is damaged, or the shards do not fit together.
    """
    size = checkpoint.world_size
    paths = [checkpoint.folder / f"model_world_size_{size}_rank_{rank}.pt" for rank in range(size)]
    shards = [_load(path) for path in paths]
    for path, shard in zip(paths, shards, strict=True):
        if different := shard.keys() ^ shards[0].keys():
            raise ValueError(f"{path.name} and {paths[0].name} differ in {sorted(different)[:3]}: are they of one run?")
    return {name: whole(name, [shard[name] for shard in shards]) for name in shards[0]}


def _load(path: Path) -> dict[str, Tensor]:
    """Tensors of a shard, mapped into memory: they are read when a tensor is put together. Unpickles only tensors."""
    try:
        return dict(torch.load(path, map_location="cpu", mmap=True, weights_only=True))
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        reason = first_line(error)
        raise ValueError(f"{path} cannot be read, is it whole? {reason}") from error


def whole(name: str, parts: list[Tensor]) -> Tensor:
    """One tensor from what every rank saved of it, in the order of ranks.

    Raises:
        ValueError: the parts do not make up the tensor.
    """
    first = parts[0]
    if not isinstance(first, DTensor):
        if any(part.shape != first.shape or not torch.equal(part, first) for part in parts[1:]):
            raise ValueError(f"{name} was saved by every rank as a whole, and differs between them")
        return first
    sharded = [axis for axis, placement in enumerate(first.placements) if placement.is_shard()]
    if len(sharded) > 1 or any(placement.is_partial() for placement in first.placements):
        raise ValueError(f"{name} is placed as {first.placements}; only one sharded dimension is known here")
    locals_ = [part._local_tensor for part in parts if isinstance(part, DTensor)]
    if len(locals_) != len(parts) or first.device_mesh.mesh.numel() != len(parts):
        raise ValueError(f"{name} is spread over {first.device_mesh.mesh.numel()} ranks, but {len(parts)} saved it")
    if not sharded:
        return locals_[0]
    # Along the other axes are copies; the first is taken.
    axis = sharded[0]
    ranks = first.device_mesh.mesh.movedim(axis, 0).reshape(first.device_mesh.mesh.shape[axis], -1)[:, 0]
    dim = next(placement.dim for placement in first.placements if isinstance(placement, Shard))
    tensor = torch.cat([locals_[rank] for rank in ranks.tolist()], dim=dim)
    if tensor.shape != first.shape:
        raise ValueError(f"the shards of {name} make {tuple(tensor.shape)}, not {tuple(first.shape)}: are they whole?")
    return tensor
