"""Distance between hidden states of two models, layer by layer, with the gradient formed in the forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_POSITIONS = 2048
"""Positions worked on at a time in float32; changes memory, not numbers."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Linear maps of one pair of layers into a common space (OPRD-Bridge): student [r, d_s], teacher [r, d_t] after
    its mean [d_t] is taken off."""

    student: Tensor
    teacher: Tensor
    teacher_mean: Tensor


def hidden_mse(
    *,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    weights: Tensor,
    normalize: bool,
    projections: Sequence[Projection] | None = None,
) -> dict[str, Tensor]:
    """Squared distance of hidden states, averaged over layers: sum_n w_n 1/L sum_l 1/d |h_S - h_T|^2.

    With `normalize` both vectors are scaled to length 1 before. With projections h_S becomes P_S h_S, h_T becomes
    P_T (h_T - mean), and nothing is divided by d; with both, the sum is divided by r, the number of entries. Computed
    in float32 (float64 stays float64); positions of weight 0 are never touched. The teacher gets no gradient.

    Args:
        student: L tensors [N, d_s]; gradient flows here.
        teacher: L tensors [N, d_t], d_t = d_s without projections.
        weights: [N], normally mask / tokens.
        normalize: compare directions only.
        projections: one for each layer, or None.

    Returns:
        `loss` (scalar, with a graph), and without one per position [N]: `hidden_mse` (what the loss sums, before the
        weight) and `hidden_cosine` (of the vectors that are compared, mean over layers).

    Raises:
        ValueError: numbers of layers or sizes differ.

    Source: OPRD, arXiv 2606.06021, Eq. 6 (raw, /d) and Eq. 14-15 (projected, sum over r).
    """
    _check(student, teacher, weights, projections)
    loss = torch.zeros((), device=weights.device)
    total = torch.zeros(2, len(weights), device=weights.device, dtype=_working(student[0]))
    for index, (student_layer, teacher_layer) in enumerate(zip(student, teacher, strict=True)):
        projection = projections[index] if projections is not None else None
        layer_loss, values = _LayerDistance.apply(
            student_layer, teacher_layer.detach(), weights / len(student), normalize, projection
        )
        loss, total = loss + layer_loss, total + values / len(student)
    return {"loss": loss, "hidden_mse": total[0], "hidden_cosine": total[1]}


class _LayerDistance(torch.autograd.Function):
    """Loss and values [2, N] of one layer."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, weights: Tensor, normalize: bool, projection: Projection | None
    ) -> tuple[Tensor, Tensor]:
        work = _working(student)
        gradient = torch.zeros_like(student) if ctx.needs_input_grad[0] else None
        values = torch.zeros(2, len(student), dtype=work, device=student.device)
        with torch.autocast(student.device.type, enabled=False):
            for positions in weights.nonzero().squeeze(-1).split(CHUNK_POSITIONS):
                if len(positions) == 0:
                    continue
                values[:, positions], chunk = _distances(
                    student[positions].to(work), teacher[positions].to(work), normalize, projection
                )
                if gradient is not None:
                    gradient[positions] = (chunk * weights[positions].to(work).unsqueeze(-1)).to(gradient.dtype)
        ctx.gradient = gradient
        ctx.mark_non_differentiable(values)
        return (values[0] * weights.to(work)).sum(), values

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        if ctx.gradient is None:
            raise RuntimeError("the gradient of hidden_mse was formed for one backward pass and is gone")
        gradient, ctx.gradient = ctx.gradient, None
        # The scale keeps its precision: rounded to bfloat16 it would be off by up to 0.4 %, for all positions alike.
        return gradient.mul_(scale), None, None, None, None


def _check(
    student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Tensor, projections: Sequence[Projection] | None
) -> None:
    """Refuse what would fail late, or not at all: positions of a longer layer could be left out unseen."""
    if not student or len(student) != len(teacher):
        raise ValueError(f"{len(student)} student layers against {len(teacher)} teacher layers")
    if projections is not None and len(projections) != len(student):
        raise ValueError(f"{len(projections)} projections for {len(student)} layers")
    for index, (student_layer, teacher_layer) in enumerate(zip(student, teacher, strict=True)):
        shapes = f"layer {index}: hidden states {tuple(student_layer.shape)} and {tuple(teacher_layer.shape)}"
        if len(student_layer) != len(teacher_layer):
            raise ValueError(
                f"layer {index}: {len(student_layer)} positions of the student against {len(teacher_layer)} of the "
                "teacher"
            )
        if len(student_layer) != len(weights):
            raise ValueError(f"layer {index}: {len(student_layer)} positions, and {len(weights)} weights")
        if projections is None:
            if student_layer.shape != teacher_layer.shape:
                raise ValueError(f"{shapes} differ: models of other sizes need projections")
            continue
        widths = (projections[index].student.shape[1], projections[index].teacher.shape[1])
        if widths != (student_layer.shape[1], teacher_layer.shape[1]):
            raise ValueError(f"{shapes} do not fit the projection, which is for widths {widths[0]} and {widths[1]}")


def _distances(
    student: Tensor, teacher: Tensor, normalize: bool, projection: Projection | None
) -> tuple[Tensor, Tensor]:
    """(distance, cosine) [2, n] and d distance / d student [n, d_s]."""
    student_states, teacher_states, size = student, teacher, student.shape[-1]
    if projection is not None:
        student_states = student @ projection.student.to(student).t()
        teacher_states = (teacher - projection.teacher_mean.to(teacher)) @ projection.teacher.to(teacher).t()
        # Eq. 14 has no factor; the authors' scripts take the mean over the r entries of vectors of length 1.
        size = student_states.shape[-1] if normalize else 1
    length = student_states.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    teacher_length = teacher_states.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    direction, teacher_direction = student_states / length, teacher_states / teacher_length
    cosine = (direction * teacher_direction).sum(-1)
    if normalize:
        difference = direction - teacher_direction
        slope = (difference - direction * (difference * direction).sum(-1, keepdim=True)) / length
    else:
        difference = slope = student_states - teacher_states
    gradient = 2 / size * slope
    if projection is not None:
        gradient = gradient @ projection.student.to(gradient)
    return torch.stack([difference.square().sum(-1) / size, cosine]), gradient


def _working(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
