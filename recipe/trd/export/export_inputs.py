"""Options of an export and the inputs that they name, all of which are found before anything is computed."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer

from recipe.trd.evaluate import model_weights
from recipe.trd.export import checkpoint as checkpoints
from recipe.trd.export import texts
from recipe.trd.export.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """Options of an export."""

    checkpoint: Path
    out: Path
    base: str | None
    """Folder or name of the base model; None: where the run had it."""
    dtype: torch.dtype | None
    """Type of the weights that are written; None: the base model's for a model, the trainer's for an adapter."""
    device: str
    text: Path | None
    num_texts: int
    num_tokens: int
    adapter_only: bool
    allow_unchanged: bool


@dataclass(frozen=True)
class ExportInputs:
    """The inputs that a plan names, opened and read."""

    checkpoint: Checkpoint
    base_name: str
    base: Path
    held_out: texts.Texts


def read(plan: ExportPlan) -> ExportInputs:
    """Find everything that the plan names, before anything is computed.

    Raises:
        ValueError: something is not there; the message says which argument to change.
    """
    if plan.out.exists() and (not plan.out.is_dir() or any(plan.out.iterdir())):
        raise ValueError(f"{plan.out} is there already: choose another folder, or delete it")
    checkpoint = checkpoints.find(plan.checkpoint)
    name = plan.base or checkpoint.setting("actor_rollout_ref.model.path")
    if name is None:
        raise ValueError(f"no config.yaml lies around {checkpoint.folder} that names the base model: give --base")
    try:
        base = model_weights.resolve(str(name))
    except ValueError as error:
        raise ValueError(f"the base model cannot be read: {error}; give --base") from error
    held_out = texts.held_out(
        checkpoint,
        AutoTokenizer.from_pretrained(checkpoint.side_files),
        path=plan.text,
        num_texts=plan.num_texts,
        num_tokens=plan.num_tokens,
    )
    return ExportInputs(checkpoint, str(name), base, held_out)
