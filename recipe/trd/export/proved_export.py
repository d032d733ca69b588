"""An export from checkpoint to proof; the output folder gets its name when all is proved."""

import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from recipe.trd.evaluate import model_weights, report
from recipe.trd.export import compared_models, proof
from recipe.trd.export.export_inputs import ExportInputs, ExportPlan, read
from recipe.trd.export.write_model import WrittenExport, held_out_log_probs, write
from verl_ext.runtime import files, weight_files
from verl_ext.runtime.packages import installed_versions

RESULT = "export.json"
PACKAGES = ("verl", "torch", "transformers", "peft", "safetensors")


def export(plan: ExportPlan, console: Console) -> dict[str, Any]:
    """Write a model or an adapter, prove it, and give it its name.

    Returns:
        The content of `export.json`.

    Raises:
        ValueError: the plan cannot be carried out.
        NotProved: what was written is not what was trained; nothing is left of it.
    """
    inputs = read(plan)
    with _folder(plan.out) as folder:
        written = write(plan, inputs, folder)
        found = measure(plan, inputs, written, folder)
        tolerance = proof.EXACT if written.exact else proof.TOLERANCES[written.dtype]
        console.print(report.page(table(found, tolerance)))
        proof.check(found, tolerance=tolerance, dtype=written.dtype, allow_unchanged=plan.allow_unchanged)
        result = {
            **describe(plan, inputs, written, folder),
            "differences_nats": asdict(found),
            "tolerance_nats": asdict(tolerance),
            "floor_nats": proof.FLOOR,
        }
        files.write_json(folder / RESULT, result)
    return result


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


def measure(plan: ExportPlan, inputs: ExportInputs, written: WrittenExport, folder: Path) -> proof.Differences:
    """Load what was written, and the base, and compare them.

    Raises:
        ValueError: the base is another model.
        NotProved: what was written does not load as it was written.
    """
    gc.collect()
    if plan.adapter_only:
        exported = held_out_log_probs(plan, inputs, compared_models.base_with_adapter(inputs.base, folder))
    else:
        exported = held_out_log_probs(plan, inputs, compared_models.written_model(folder, dtype=written.dtype))
    own = compared_models.dtype_of(inputs.base)
    base = held_out_log_probs(plan, inputs, compared_models.base_model(inputs.base, dtype=own))
    if base.shape != written.trainer.shape:
        raise ValueError(
            f"the base {inputs.base_name} has a vocabulary of {base.shape[1]}, the trainer's model one of "
            f"{written.trainer.shape[1]}: give the model that was trained as --base"
        )
    # An adapter leaves its base as it is; a model is compared with a base that was rounded as the model was.
    rounded = base
    if not plan.adapter_only and written.dtype != own:
        rounded = held_out_log_probs(plan, inputs, compared_models.base_model(inputs.base, dtype=written.dtype))
    targets = torch.tensor([token for text in inputs.held_out.texts for token in text.tokens])
    return proof.Differences(
        exported=proof.difference(written.trainer, exported, targets),
        merged=None if written.merged is None else proof.difference(written.trainer, written.merged, targets),
        trained=proof.difference(written.trainer, base, targets),
        moved=proof.difference(exported, rounded, targets),
    )


def describe(plan: ExportPlan, inputs: ExportInputs, written: WrittenExport, folder: Path) -> dict[str, Any]:
    """What was exported from what, with fingerprints of the weights.

    Raises:
        ValueError: base and export have no tensor in common.
    """
    tensors, base_tensors = weight_files.hash_tensors(folder), weight_files.hash_tensors(inputs.base)
    return {
        "kind": written.kind,
        "dtype": str(written.dtype).removeprefix("torch."),
        "checkpoint": {
            "folder": str(inputs.checkpoint.folder),
            "step": inputs.checkpoint.step,
            "world_size": inputs.checkpoint.world_size,
        },
        "adapters": written.adapters,
        "fingerprint": weight_files.fingerprint(tensors),
        "side_files": model_weights.side_files(folder),
        "base": {"name": inputs.base_name, "fingerprint": weight_files.fingerprint(base_tensors)},
        "weights_against_base": None if plan.adapter_only else model_weights.compare(tensors, base_tensors).as_dict(),
        "text": {
            "source": inputs.held_out.source,
            "num_texts": len(inputs.held_out.texts),
            "num_tokens": inputs.held_out.num_tokens,
            "num_plain_prompts": inputs.held_out.num_plain,
        },
        "allow_unchanged": plan.allow_unchanged,
        "device": plan.device,
        "packages": installed_versions(PACKAGES),
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
