"""Differences between models on held-out text, and which of them an export may show.

Log-probs of all models are computed in float32 on the same tokens, so that only the weights can differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipe.trd.export.checkpoint import NotProved
from recipe.trd.export.texts import Text


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two models are apart on the same N tokens, in nats."""

    max: float
    """Largest difference of a token's log-prob."""
    mean: float
    """Mean of the absolute differences over tokens."""
    kl: float
    """KL(first || second) over the whole vocabulary, mean over tokens."""

    def within(self, tolerance: "Difference") -> bool:
        """Whether all three are at most as large."""
        return self.max <= tolerance.max and self.mean <= tolerance.mean and self.kl <= tolerance.kl


EXACT = Difference(max=1e-3, mean=1e-4, kl=1e-6)
"""Tolerance between models that differ only in the order of sums: adapters merged in float32, or weights that were
not rounded."""

TOLERANCES = {
    torch.float32: EXACT,
    torch.float16: Difference(max=0.25, mean=0.01, kl=1e-3),
    torch.bfloat16: Difference(max=1.0, mean=0.05, kl=1e-2),
}
"""Tolerance between a model and itself with weights rounded to a type; source of the numbers: docs/export.md."""

FLOOR = 1e-4
"""Models whose log-probs differ nowhere by more are the same model, nats."""

MAX_ROUNDED_FRAC = 0.5
"""Largest change by rounding, as a fraction of the change by training (both as KL from the trainer's model)."""


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The pairs of models of one export; the trainer's model is the first of every pair that it is in."""

    exported: Difference
    """Trainer's model and what was written."""
    merged: Difference | None
    """Trainer's model and the merged weights before they are rounded; None where nothing was merged or rounded."""
    trained: Difference
    """Trainer's model and base."""
    moved: Difference
    """What was written and the base, rounded as it was."""


@torch.inference_mode()
def log_probs(model: Any, texts: Sequence[Text], *, device: str) -> Tensor:
    """Log-probs of all vocabulary entries at every compared token.

    Args:
        model: a causal language model in float32; moved to the device.
        texts: with N compared tokens in all.
        device: a torch device.

    Returns:
        [N, V] float32, on the CPU.

    Raises:
        NotProved: one is not a number.
    """
    # One sequence at a time, so that no padding is needed. TF32 would round what float32 is for.
    torch.set_float32_matmul_precision("highest")
    model.to(device)
    parts = []
    for text in texts:
        ids = torch.tensor([[*text.context, *text.tokens]], device=device)
        logits = model(input_ids=ids, logits_to_keep=len(text.tokens) + 1, use_cache=False).logits
        parts.append(logits[0, -len(text.tokens) - 1 : -1].float().log_softmax(-1).cpu())
    model.to("cpu")
    found = torch.cat(parts)
    if found.isnan().any():
        raise NotProved("a model answers with values that are no numbers: a weight is too large for its type")
    return found


def difference(first: Tensor, second: Tensor, targets: Tensor) -> Difference:
    """Compare two models' log-probs.

    Args:
        first: [N, V] log-probs.
        second: [N, V] log-probs.
        targets: int64 [N], the token at each position.

    Returns:
        In double precision.
    """
    at_target = (first - second).gather(1, targets.unsqueeze(1)).double().abs()
    divergences = []
    for chunks in zip(first.split(64), second.split(64), strict=True):
        log_p, log_q = (chunk.double() for chunk in chunks)
        divergences.append(torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q)).sum(-1))
    return Difference(
        max=float(at_target.max()), mean=float(at_target.mean()), kl=max(0.0, float(torch.cat(divergences).mean()))
    )


def check(found: Differences, *, tolerance: Difference, dtype: torch.dtype, allow_unchanged: bool) -> None:
    """Accept an export, or raise an error that says what is wrong with it.

    Args:
        found: what was measured.
        tolerance: between the trainer's model and what was written.
        dtype: of the weights that were written.
        allow_unchanged: whether the export may equal the base.

    Raises:
        NotProved: it is not the trained model, or not a trained one.
    """
    name = str(dtype).removeprefix("torch.")
    if found.merged is not None and not found.merged.within(EXACT):
        raise NotProved(
            f"merging changed the model (log-probs differ by up to {found.merged.max:.2g} nats, allowed "
            f"{EXACT.max:g}): adapters of this kind cannot be merged; write them with --adapter-only"
        )
    if not found.exported.within(tolerance):
        lost = "; it equals the base model: the adapters were lost" if found.moved.max <= FLOOR else ""
        raise NotProved(
            f"the exported model is not the trainer's (log-probs differ by up to {found.exported.max:.2g} nats, "
            f"{found.exported.mean:.2g} in the mean, KL {found.exported.kl:.2g}; allowed for {name}: "
            f"{tolerance.max:g}, {tolerance.mean:g} and {tolerance.kl:g}){lost}"
        )
    if allow_unchanged:
        return
    if found.trained.max <= FLOOR:
        raise NotProved(
            "the trainer's model equals the base model: adapters were dropped from the checkpoint, or nothing was "
            "trained (a checkpoint of step 0 is exported with --allow-unchanged)"
        )
    if found.moved.max <= FLOOR or found.exported.kl > MAX_ROUNDED_FRAC * found.trained.kl:
        raise NotProved(
            f"rounding to {name} changes the model about as much as the training did (KL {found.exported.kl:.2g} and "
            f"{found.trained.kl:.2g} nats): little of the training would be left; use --dtype float32"
        )
