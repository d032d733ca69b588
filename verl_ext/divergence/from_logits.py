"""Exact divergences between a teacher and a student at every token, with the gradient formed in the forward pass.

A divergence is additive over rows, and what a row will be multiplied with in the loss is only known in the backward
pass; so the forward pass keeps d(divergence)/d(logits) in the logits' own dtype, and the backward pass scales its
rows. Beside that one [N, V] tensor, memory is that of one chunk of rows in float32.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 512
"""Rows worked on at a time; changes memory, not numbers."""


def forward_kl_topk(*, student_logits: Tensor, teacher_ids: Tensor, teacher_log_probs: Tensor) -> dict[str, Tensor]:
    """Per-token KL(teacher || student) on the teacher's top-k and one bucket that holds every other token.

        sum_{v in top-k} p_T(v) (log p_T(v) - log p_S(v)) + r_T (log r_T - log r_S),   r = 1 - sum_{v in top-k} p(v)

    By the data-processing inequality this is a lower bound of the KL over the whole vocabulary, it is >= 0, it is 0
    where both agree on the top-k, and for k = V it is that KL. The student's bucket is a log-sum-exp over its own
    tokens outside the top-k, not 1 - sum, so nothing cancels when the student is certain.

    Args:
        student_logits: [N, V], any float type; gradient flows here. Rows already divided by the temperature.
        teacher_ids: [N, K] integer, distinct ids in [0, V) in each row.
        teacher_log_probs: [N, K] natural logarithms under the teacher's full softmax; -inf stands for probability 0.

    Returns:
        Tensors [N] in float32 (float64 for float64 logits); only `divergence` (nats) carries a gradient:
        `divergence`, `teacher_mass` and `student_mass` (probability inside the top-k), `student_entropy` (nats, full
        vocabulary), `teacher_entropy` (nats, of top-k and bucket), `argmax_agreement` (1 where both prefer one token).

    Raises:
        ValueError: shapes differ, or K exceeds V.

    Source: forward KL of TRD, arXiv 2606.08432; the bucket makes a top-k support a distribution again (verl issue
    7856).
    """
    num_rows, vocab_size = student_logits.shape
    if teacher_ids.shape != teacher_log_probs.shape or teacher_ids.shape[0] != num_rows:
        raise ValueError(
            f"student_logits {tuple(student_logits.shape)}, teacher_ids {tuple(teacher_ids.shape)} and "
            f"teacher_log_probs {tuple(teacher_log_probs.shape)} must share their rows, and the last two their shape"
        )
    if teacher_ids.shape[1] > vocab_size:
        raise ValueError(f"top-k of {teacher_ids.shape[1]} exceeds the student's vocabulary of {vocab_size}")
    divergence, *diagnostics = _ForwardKLTopK.apply(student_logits, teacher_ids.long(), teacher_log_probs)
    names = ("teacher_mass", "student_mass", "student_entropy", "teacher_entropy", "argmax_agreement")
    return {"divergence": divergence, **dict(zip(names, diagnostics, strict=True))}


class _ForwardKLTopK(torch.autograd.Function):
    """Value and gradient of `forward_kl_topk`, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, log_probs: Tensor) -> tuple[Tensor, ...]:
        work = torch.float64 if logits.dtype == torch.float64 else torch.float32
        outputs = logits.new_zeros((6, logits.shape[0]), dtype=work)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start in range(0, logits.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            outputs[:, rows], chunk_gradient = _forward_kl_topk_rows(
                logits[rows].to(work), ids[rows], log_probs[rows].to(work)
            )
            if gradient is not None:
                gradient[rows] = chunk_gradient.to(gradient.dtype)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(*outputs[1:].unbind())
        return outputs.unbind()

    @staticmethod
    def backward(ctx: Any, weight: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        # Rows that the loss does not count must not leak a NaN of their own through 0 * NaN.
        scaled = gradient * weight.unsqueeze(-1).to(gradient.dtype)
        return torch.where(weight.unsqueeze(-1) == 0, torch.zeros_like(scaled), scaled), None, None


def _x_log_x(x: Tensor) -> Tensor:
    """x log x with its limit 0 at x = 0."""
    return torch.special.xlogy(x, x)


def _forward_kl_topk_rows(logits: Tensor, ids: Tensor, teacher_log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [6, N] in the order of `forward_kl_topk`, and the gradient of the divergence [N, V]."""
    log_z = logits.logsumexp(-1, keepdim=True)
    student_probs = (logits - log_z).exp_()
    student_log_probs = logits.gather(-1, ids) - log_z
    teacher_probs = teacher_log_probs.exp()
    teacher_mass = teacher_probs.sum(-1)
    # What is left below the rounding of a sum of K float32 numbers is no probability.
    rest = 1 - teacher_mass
    noise = ids.shape[-1] * torch.finfo(torch.float32).eps
    teacher_rest = torch.where((rest > noise) & (ids.shape[-1] < logits.shape[-1]), rest, torch.zeros_like(rest))

    outside = logits.scatter(-1, ids, float("-inf"))
    rest_log_z = outside.logsumexp(-1, keepdim=True)
    student_log_rest = torch.where(teacher_rest > 0, (rest_log_z - log_z).squeeze(-1), torch.zeros_like(teacher_rest))

    cross_entropy = -torch.where(teacher_probs > 0, teacher_probs * student_log_probs, 0).sum(-1)
    teacher_entropy = -_x_log_x(teacher_probs).sum(-1) - _x_log_x(teacher_rest)
    divergence = cross_entropy - teacher_rest * student_log_rest - teacher_entropy

    # d/dlogits: total teacher mass * p_S, minus the teacher's mass on each token, the bucket's spread as the
    # student's is.
    gradient = student_probs * (teacher_mass + teacher_rest).unsqueeze(-1)
    gradient.scatter_add_(-1, ids, -teacher_probs)
    rest_probs = torch.where(teacher_rest.unsqueeze(-1) > 0, (outside - rest_log_z).exp_(), torch.zeros_like(outside))
    gradient -= teacher_rest.unsqueeze(-1) * rest_probs

    student_entropy = log_z.squeeze(-1) - torch.where(student_probs > 0, student_probs * logits, 0).sum(-1)
    agreement = (logits.argmax(-1) == ids.gather(-1, teacher_log_probs.argmax(-1, keepdim=True)).squeeze(-1)).to(logits)
    student_mass = student_log_probs.exp().sum(-1)
    return (
        torch.stack([divergence, teacher_mass, student_mass, student_entropy, teacher_entropy, agreement]),
        gradient,
    )
