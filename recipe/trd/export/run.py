"""An export from checkpoint to proof; the output folder gets its name when all is proved."""

import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import reduce
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from rich.console import Console
from torch import Tensor
from transformers import AutoTokenizer

from recipe.trd.evaluate import fingerprint, report, store
from recipe.trd.export import checkpoint as checkpoints
from recipe.trd.export import models, proof, texts
from recipe.trd.export.checkpoint import Checkpoint

RESULT = "export.json"
PACKAGES = ("verl", "torch", "transformers", "peft", "safetensors")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked for."""

    checkpoint: Path
    out: Path
    base: str | None
    """Folder or name of the base model; None: where the run had it."""
    dtype: torch.dtype | None
    """Of what is written; None: the base model's for a model, the trainer's for an adapter."""
    device: str
    text: Path | None
    num_texts: int
    num_tokens: int
    adapter_only: bool
    allow_unchanged: bool


@dataclass(frozen=True)
class Given:
    """What a plan refers to, read."""

    checkpoint: Checkpoint
    base_name: str
    base: Path
    held_out: texts.Texts


@dataclass(frozen=True, kw_only=True)
class Written:
    """What lies in the folder, and what the trainer's model says."""

    kind: str
    """adapter, merged, or full: the run trained all parameters."""
    dtype: torch.dtype
    exact: bool
    """Whether nothing was rounded."""
    adapters: dict[str, Any] | None
    trainer: Tensor
    """Log-probs [N, V]."""
    merged: Tensor | None
    """Of the merged weights before they were rounded."""


def export(plan: Plan, console: Console) -> dict[str, Any]:
    """Write a model or an adapter, prove it, and give it its name.

    Returns:
        The content of `export.json`.

    Raises:
        ValueError: the plan cannot be carried out.
        NotProved: what was written is not what was trained; nothing is left of it.
    """
    given = read(plan)
    with _folder(plan.out) as folder:
        written = write(plan, given, folder)
        found = measure(plan, given, written, folder)
        tolerance = proof.EXACT if written.exact else proof.TOLERANCES[written.dtype]
        console.print(report.page(table(found, tolerance)))
        proof.check(found, tolerance=tolerance, dtype=written.dtype, allow_unchanged=plan.allow_unchanged)
        result = {
            **describe(plan, given, written, folder),
            "differences_nats": asdict(found),
            "tolerance_nats": asdict(tolerance),
            "floor_nats": proof.FLOOR,
        }
        store.write_json(folder / RESULT, result)
    return result


def read(plan: Plan) -> Given:
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
        base = fingerprint.resolve(str(name))
    except ValueError as error:
        raise ValueError(f"the base model cannot be read: {error}; give --base") from error
    held_out = texts.held_out(
        checkpoint,
        AutoTokenizer.from_pretrained(checkpoint.side_files),
        path=plan.text,
        num_texts=plan.num_texts,
        num_tokens=plan.num_tokens,
    )
    return Given(checkpoint, str(name), base, held_out)


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` where nothing goes wrong, and nothing otherwise."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write(plan: Plan, given: Given, folder: Path) -> Written:
    """Ask the trainer's model, and write it; one model is in memory at a time.

    Raises:
        ValueError: the checkpoint does not fit together, or there is no adapter to write.
        NotProved: its adapters are gone.
    """
    tensors = checkpoints.tensors(given.checkpoint)
    adapters = models.lora_config(given.checkpoint, tensors)
    if plan.adapter_only and adapters is None:
        raise ValueError("--adapter-only: the run trained all parameters, there is no adapter; leave it out")
    idle, num_adapters = models.num_idle_adapters(tensors)
    of_export = [value.dtype for name, value in tensors.items() if models.is_adapter(name) or not plan.adapter_only]
    stored = reduce(torch.promote_types, of_export)
    dtype = plan.dtype or (stored if plan.adapter_only else models.dtype_of(given.base))
    merges = adapters is not None and not plan.adapter_only
    exact = dtype == torch.float32 or (dtype == stored and not merges)
    model = models.trainer_model(given.checkpoint, tensors, adapters, given.base)
    del tensors
    trainer, merged = _ask(plan, given, model), None
    if merges:
        model = models.merged(model)
        merged = None if exact else _ask(plan, given, model)
    if plan.adapter_only:
        models.write_adapter(model, folder, dtype=dtype, base=given.base_name)
    else:
        models.write_model(model, folder, dtype=dtype, side_files=given.checkpoint.side_files)
    return Written(
        kind="merged" if merges else "adapter" if plan.adapter_only else "full",
        dtype=dtype,
        exact=exact,
        adapters=None if adapters is None else {**_settings(adapters), "num_adapters": num_adapters, "num_idle": idle},
        trainer=trainer,
        merged=merged,
    )


def measure(plan: Plan, given: Given, written: Written, folder: Path) -> proof.Differences:
    """Load what was written, and the base, and compare them.

    Raises:
        ValueError: the base is another model.
        NotProved: what was written does not load as it was written.
    """
    gc.collect()
    if plan.adapter_only:
        exported = _ask(plan, given, models.base_with_adapter(given.base, folder))
    else:
        exported = _ask(plan, given, models.written_model(folder, dtype=written.dtype))
    own = models.dtype_of(given.base)
    base = _ask(plan, given, models.base_model(given.base, dtype=own))
    if base.shape != written.trainer.shape:
        raise ValueError(
            f"the base {given.base_name} has a vocabulary of {base.shape[1]}, the trainer's model one of "
            f"{written.trainer.shape[1]}: give the model that was trained as --base"
        )
    # An adapter leaves its base as it is; a model is compared with a base that was rounded as the model was.
    rounded = base
    if not plan.adapter_only and written.dtype != own:
        rounded = _ask(plan, given, models.base_model(given.base, dtype=written.dtype))
    targets = torch.tensor([token for text in given.held_out.texts for token in text.tokens])
    return proof.Differences(
        exported=proof.difference(written.trainer, exported, targets),
        merged=None if written.merged is None else proof.difference(written.trainer, written.merged, targets),
        trained=proof.difference(written.trainer, base, targets),
        moved=proof.difference(exported, rounded, targets),
    )


def _ask(plan: Plan, given: Given, model: Any) -> Tensor:
    return proof.log_probs(model, given.held_out.texts, device=plan.device)


def _settings(adapters: LoraConfig) -> dict[str, Any]:
    modules = adapters.target_modules
    return {
        "r": adapters.r,
        "lora_alpha": adapters.lora_alpha,
        "target_modules": modules if modules is None or isinstance(modules, str) else sorted(modules),
    }


def describe(plan: Plan, given: Given, written: Written, folder: Path) -> dict[str, Any]:
    """What was exported from what, with fingerprints of the weights.

    Raises:
        ValueError: base and export have no tensor in common.
    """
    tensors, theirs = fingerprint.tensors(folder), fingerprint.tensors(given.base)
    return {
        "kind": written.kind,
        "dtype": str(written.dtype).removeprefix("torch."),
        "checkpoint": {
            "folder": str(given.checkpoint.folder),
            "step": given.checkpoint.step,
            "world_size": given.checkpoint.world_size,
        },
        "adapters": written.adapters,
        "fingerprint": fingerprint.fingerprint(tensors),
        "side_files": fingerprint.side_files(folder),
        "base": {"name": given.base_name, "fingerprint": fingerprint.fingerprint(theirs)},
        "weights_against_base": None if plan.adapter_only else fingerprint.compare(tensors, theirs).as_dict(),
        "text": {
            "source": given.held_out.source,
            "num_texts": len(given.held_out.texts),
            "num_tokens": given.held_out.num_tokens,
            "num_plain_prompts": given.held_out.num_plain,
        },
        "allow_unchanged": plan.allow_unchanged,
        "device": plan.device,
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def table(found: proof.Differences, tolerance: proof.Difference) -> list[dict[str, str]]:
    """One row for each pair of models; texts."""
    at_most = f"at most {tolerance.max:g}, {tolerance.mean:g}, {tolerance.kl:g}"
    exact = f"at most {proof.EXACT.max:g}, {proof.EXACT.mean:g}, {proof.EXACT.kl:g}"
    pairs = {
        "trainer - exported": (found.exported, at_most),
        "trainer - merged, not rounded": (found.merged, exact),
        "trainer - base": (found.trained, f"max above {proof.FLOOR:g}"),
        "exported - base": (found.moved, f"max above {proof.FLOOR:g}"),
    }
    return [
        {
            "log-probs, nats": name,
            "max": f"{difference.max:.3g}",
            "mean": f"{difference.mean:.3g}",
            "KL/token": f"{difference.kl:.3g}",
            "wanted": wanted,
        }
        for name, (difference, wanted) in pairs.items()
        if difference is not None
    ]
