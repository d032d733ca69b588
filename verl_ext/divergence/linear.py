"""Divergences straight from hidden states and output heads, without a [tokens, vocabulary] tensor.

The loss is sum_n w_n * D_n with weights w that are known beforehand, so each chunk of positions can form its gradient
at once: logits of both sides, value, d(loss)/d(logits), and from it the gradients of hidden states and head. Memory is
two [chunk, V] buffers (one for a top-k teacher), one more for d(loss)/d(logits) where Triton kernels write it, and, if
it trains, the head's gradient.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from verl_ext.divergence.block import diagnostic_top_k, evaluate_block, output_names
from verl_ext.divergence.head import (
    finish_logits,
    gradient_dtype,
    hidden_gradient,
    raw_logits,
    weight_gradient,
    working_dtype,
)
from verl_ext.divergence.softmax import softmax_in_place
from verl_ext.divergence.spec import Head, Objective, Tokens, TopK, check_fit
from verl_ext.divergence.support import Block
from verl_ext.divergence.whole_block import WholeBlock

CHUNK_BYTES = {"cpu": 206 << 20, "cuda": 600 << 20}
"""Memory of the logits [chunk, V] of both sides together; changes memory and speed, not numbers. On a CPU, matrix
products slow down with fewer positions: for a vocabulary of 151,936, 177 fit, or 355 beside a top-k; on a GPU 512, or
1024."""

GRADIENT_BYTES = 450 << 20
"""On a GPU, memory of d(loss)/d(logits) of the chunks that are multiplied together: each time the float32 gradient of
the head is read and written once."""

CHUNK_STEP = {"cpu": 16, "cuda": 128}
"""Positions of a chunk are a multiple of this: the tiles of a product."""

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 48 << 20}
"""Size of one temporary [positions, V] of the work on logits: large enough for two cores, small enough for a cache."""


@dataclass(frozen=True, kw_only=True)
class LinearDivergence:
    """`loss` (scalar, with a graph) and `tokens`: values per position [N] without one, 0 for positions of weight 0."""

    loss: Tensor
    tokens: dict[str, Tensor]


def linear_divergence(
    *,
    student: Head,
    teacher: Head | TopK | None,
    tokens: Tokens,
    objective: Objective,
    vocab_size: int | None = None,
) -> LinearDivergence:
    """Loss sum_n tokens.weights[n] * D_n with gradients of the student's hidden states, head and bias.

    Computed in at least float32; float64 stays float64. Positions of weight 0 are never touched, whatever they hold.
    The sum is over the positions given: with weights mask / (global token count) any split of them into micro-batches,
    or over Ulysses ranks, adds up to the same loss and gradient.

    Args:
        student: gradients flow to hidden, weight and bias where they require one.
        teacher: a `Head` on the same positions, a `TopK`, or None for only cross_entropy. Never gets a gradient.
        tokens: weights of the positions, and what was sampled there.
        objective: the terms.
        vocab_size: number of real tokens; heads may have padding after them, which takes no part in any softmax and
            gets the gradient 0. None where both heads have no padding; heads of different size need it.

    Returns:
        The loss, and per position: `token_loss` (what the loss sums, before the weight), the value of each term under
        the name of its divergence (before position clip, gate and coefficient), `<name>_clipped` and `<name>_gate`
        where it has these, `student_entropy`, `teacher_entropy` (of top-k and rest for a `TopK`),
        `argmax_agreement`, and with a k `teacher_mass`, `student_mass` (probability of the top-k) and `overlap` (the
        fraction of the teacher's top-k in the student's).

    Raises:
        ValueError: shapes that do not fit, heads of different size without vocab_size, an objective that this teacher
            cannot serve.
    """
    check_fit(objective=objective, teacher=teacher, tokens=tokens)
    num_tokens = _vocabulary(student, teacher, vocab_size)
    _check_positions(student, teacher, tokens)
    if student.swapped is not None:
        raise ValueError("only a teacher's tokens can be swapped")
    if isinstance(teacher, TopK):
        _check_ids(teacher.ids, tokens, num_tokens)
    if tokens.ids is not None and any(term.support == "sampled" for term in objective.terms):
        _check_ids(tokens.ids, tokens, num_tokens)
    job = _Job(student=student, teacher=_detached(teacher), tokens=tokens, objective=objective, num_tokens=num_tokens)
    loss, *values = _LinearDivergence.apply(student.hidden, student.weight, student.bias, job)
    return LinearDivergence(loss=loss, tokens=dict(zip(output_names(objective, teacher), values, strict=True)))


@dataclass(frozen=True, kw_only=True)
class _Job:
    student: Head
    teacher: Head | TopK | None
    tokens: Tokens
    objective: Objective
    num_tokens: int


@dataclass(kw_only=True)
class _Gradients:
    """Gradients of the scalar loss, in the working type; None where nobody asks."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class _LinearDivergence(torch.autograd.Function):
    """Forms the gradients in the forward pass; the backward pass scales them by the upstream scalar, once."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job) -> tuple[Tensor, ...]:
        student = Head(
            hidden=hidden,
            weight=weight,
            bias=bias,
            soft_cap=job.student.soft_cap,
            temperature=job.student.temperature,
        )
        with torch.autocast(hidden.device.type, enabled=False):
            outputs, gradients = _all_chunks(replace(job, student=student), ctx.needs_input_grad[:3])
        weights = job.tokens.weights
        counted = torch.where(weights == 0, 0, outputs[0] * weights.to(outputs.dtype))
        loss = counted.double().sum().to(outputs.dtype)
        ctx.gradients = (gradients.hidden, gradients.weight, gradients.bias)
        values = outputs.unbind()
        ctx.mark_non_differentiable(*values)
        return loss, *values

    @staticmethod
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of linear_divergence were formed for one backward pass and are gone")
        gradients, ctx.gradients = ctx.gradients, None
        for gradient in gradients:
            if gradient is not None:
                _scale(gradient, scale)
        return *gradients, None


def _scale(gradient: Tensor, scale: Tensor) -> None:
    """gradient *= scale, which is not rounded to a bfloat16 gradient's type: that would shift all positions alike."""
    if gradient.is_cuda and gradient.dtype != torch.float64:
        from verl_ext.divergence.kernels import scale_in_place

        scale_in_place(gradient, scale.float())
    elif gradient.is_cuda or scale.item() != 1:
        gradient.mul_(scale)


def _all_chunks(job: _Job, needs_gradient: tuple[bool, ...]) -> tuple[Tensor, _Gradients]:
    """Outputs [names, N] and the gradients, in the types of what they belong to."""
    student, teacher = job.student, job.teacher
    dtype = working_dtype(student.hidden, student.weight)
    positions = job.tokens.weights.nonzero().squeeze(-1)
    names = output_names(job.objective, teacher)
    outputs = torch.zeros(len(names), len(student.hidden), dtype=dtype, device=student.hidden.device)
    gradients = _no_gradients(job, needs_gradient, dtype, num_positions=len(positions))

    if len(positions) > 0:
        form_gradients = _with_kernels if uses_kernels(student) else _in_place
        form_gradients(job, positions, outputs, gradients)
    return outputs, _Gradients(
        hidden=gradients.hidden,
        weight=None if gradients.weight is None else gradients.weight.to(student.weight.dtype),
        bias=None if gradients.bias is None or student.bias is None else gradients.bias.to(student.bias.dtype),
    )


def uses_kernels(student: Head) -> bool:
    """Whether the Triton kernels do the work on logits: on a GPU, in float32, and without a soft-cap, whose slope
    differs from token to token."""
    dtype = working_dtype(student.hidden, student.weight)
    return student.hidden.is_cuda and dtype == torch.float32 and student.soft_cap is None


def _with_kernels(job: _Job, positions: Tensor, outputs: Tensor, gradients: _Gradients) -> None:
    """Chunk by chunk with the Triton kernels, into a buffer of d(loss)/d(raw logits) that holds a group of chunks."""
    logits = _new_logits(job, num_positions=len(positions))
    dtype = gradient_dtype(job.student)
    group_size = _even_positions(len(positions), GRADIENT_BYTES // (job.num_tokens * dtype.itemsize), step=128)
    buffer = logits.new_empty((group_size, job.num_tokens), dtype=dtype)
    for index, group in enumerate(positions.split(group_size)):
        start = 0
        for chunk in group.split(logits.shape[1]):
            rows = _raw_logits(job, chunk, logits)
            outputs[:, chunk] = _gradient_with_kernels(job, chunk, rows, buffer[start : start + len(chunk)])
            start += len(chunk)
        _collect(job, group, buffer[:start], gradients, is_first=index == 0)


def _in_place(job: _Job, positions: Tensor, outputs: Tensor, gradients: _Gradients) -> None:
    """Chunk by chunk on any device; d(loss)/d(raw logits) takes the place of the student's logits."""
    logits = _new_logits(job, num_positions=len(positions))
    for index, chunk in enumerate(positions.split(logits.shape[1])):
        rows = _raw_logits(job, chunk, logits)
        outputs[:, chunk] = _gradient_in_place(job, chunk, rows)
        _collect(job, chunk, rows[0], gradients, is_first=index == 0)


def _new_logits(job: _Job, *, num_positions: int) -> Tensor:
    """Memory [sides, c, V] for the logits of a chunk of as many positions as the budget allows."""
    student, num_sides = job.student, 2 if isinstance(job.teacher, Head) else 1
    dtype, kind = working_dtype(student.hidden, student.weight), _kind(student.hidden)
    most = CHUNK_BYTES[kind] // (num_sides * job.num_tokens * dtype.itemsize)
    size = _even_positions(num_positions, most, step=CHUNK_STEP[kind])
    return student.hidden.new_empty((num_sides, size, job.num_tokens), dtype=dtype)


def _raw_logits(job: _Job, chunk: Tensor, buffers: Tensor) -> Tensor:
    """Raw logits [sides, c, V] of a chunk, in the memory of `buffers`."""
    logits = buffers[:, : len(chunk)]
    for side, out in zip((job.student, job.teacher), logits, strict=False):
        assert isinstance(side, Head), "a teacher that is a top-k has no logits"
        raw_logits(hidden=side.hidden[chunk], weight=side.weight[: job.num_tokens], out=out)
    return logits


def _no_gradients(job: _Job, needs_gradient: tuple[bool, ...], dtype: torch.dtype, *, num_positions: int) -> _Gradients:
    """Zeros; where positions follow, the first chunk writes the head's gradient, which is large, instead of adding."""
    student, (hidden, weight, bias) = job.student, needs_gradient
    weight_out = torch.empty_like(student.weight, dtype=dtype) if weight else None
    if weight_out is not None:
        weight_out[job.num_tokens if num_positions > 0 else 0 :] = 0
    return _Gradients(
        hidden=torch.zeros_like(student.hidden) if hidden else None,
        weight=weight_out,
        bias=torch.zeros_like(student.bias, dtype=dtype) if bias and student.bias is not None else None,
    )


def _collect(job: _Job, chunk: Tensor, gradient: Tensor, gradients: _Gradients, *, is_first: bool) -> None:
    """Turn d(loss)/d(raw logits) [c, V] of a chunk into its share of the three gradients."""
    student = job.student
    gradient = gradient.to(gradient_dtype(student))
    if gradients.hidden is not None:
        dtype = working_dtype(student.hidden, student.weight)
        product = hidden_gradient(gradient=gradient, weight=student.weight[: job.num_tokens], dtype=dtype)
        gradients.hidden[chunk] = product.to(gradients.hidden.dtype)
    if gradients.weight is not None:
        out = gradients.weight[: job.num_tokens]
        weight_gradient(gradient=gradient, hidden=student.hidden[chunk], out=out, accumulate=not is_first)
    if gradients.bias is not None:
        gradients.bias[: job.num_tokens] += gradient.sum(0, dtype=gradients.bias.dtype)


def _gradient_with_kernels(job: _Job, chunk: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
    """Outputs [names, c] of a chunk from its raw logits [sides, c, V]; `gradient` becomes d(loss)/d(raw logits)."""
    from verl_ext.divergence.kernel_block import KernelBlock, logit_side  # Triton is wanted on a GPU only

    finish_logits(logits=logits[0], head=job.student, num_tokens=job.num_tokens)
    if isinstance(job.teacher, Head):
        finish_logits(logits=logits[1], head=job.teacher, num_tokens=job.num_tokens)
    block = KernelBlock(
        student=logit_side(logits[0]),
        teacher=logit_side(logits[1]) if len(logits) > 1 else None,
        factor=1 / job.student.temperature,
        **_given(job, chunk),
    )
    return _evaluate(job, block, chunk, gradient)


def _gradient_in_place(job: _Job, chunk: Tensor, logits: Tensor) -> Tensor:
    """Outputs [names, c] of a chunk; its raw student logits, logits[0], become d(loss)/d(raw logits)."""
    size = max(1, BLOCK_BYTES[_kind(logits)] // (logits.shape[-1] * logits.itemsize))
    parts = []
    probs = torch.empty_like(logits[:, :size])
    for start in range(0, len(chunk), size):
        positions = chunk[start : start + size]
        rows = logits[:, start : start + size]
        slope = finish_logits(logits=rows[0], head=job.student, num_tokens=job.num_tokens)
        if isinstance(job.teacher, Head):
            finish_logits(logits=rows[1], head=job.teacher, num_tokens=job.num_tokens)
        block = WholeBlock(
            student=softmax_in_place(rows[0], probs=probs[0, : len(positions)]),
            teacher=softmax_in_place(rows[1], probs=probs[1, : len(positions)]) if len(logits) > 1 else None,
            **_given(job, positions),
        )
        parts.append(_evaluate(job, block, positions, rows[0]))
        if slope is not None:
            rows[0].mul_(slope)
    return torch.cat(parts, -1)


def _given(job: _Job, positions: Tensor) -> dict[str, Any]:
    """What the caller brought for these positions."""
    return {
        "num_tokens": job.num_tokens,
        "top_k": _top_k_at(job.teacher, positions) if isinstance(job.teacher, TopK) else None,
        "ids": _column(job.tokens.ids, positions),
        "old_log_probs": _column(job.tokens.old_log_probs, positions),
        "advantages": _column(job.tokens.advantages, positions),
    }


def _evaluate(job: _Job, block: Block, positions: Tensor, gradient: Tensor) -> Tensor:
    """Outputs [names, n] of a block; `gradient` [n, V] becomes that by its finished logits."""
    weights = job.tokens.weights[positions].to(working_dtype(job.student.hidden, job.student.weight))
    top_k = diagnostic_top_k(job.objective, job.teacher)
    return torch.stack(evaluate_block(block, objective=job.objective, weights=weights, top_k=top_k, gradient=gradient))


def _even_positions(num_positions: int, most: int, *, step: int) -> int:
    """Size of equal parts of the positions, at most `most` each and where possible a multiple of `step`."""
    most = max(1, most // step * step or most)
    num_parts = max(1, -(-num_positions // most))
    even = max(1, -(-num_positions // num_parts))
    return min(most, -(-even // step) * step, max(1, num_positions))


def _kind(tensor: Tensor) -> str:
    return "cpu" if tensor.device.type == "cpu" else "cuda"


def _top_k_at(target: TopK, positions: Tensor) -> TopK:
    return TopK(ids=target.ids[positions].long(), log_probs=target.log_probs[positions])


def _column(values: Tensor | None, positions: Tensor) -> Tensor | None:
    if values is None:
        return None
    column = values[positions].unsqueeze(-1)
    return column if column.is_floating_point() else column.long()


def _detached(teacher: Head | TopK | None) -> Head | TopK | None:
    """The teacher's tensors without a graph; they reach the function beside autograd's inputs."""
    if teacher is None:
        return None
    tensors: dict[str, Any] = {
        name: value.detach() for name, value in vars(teacher).items() if isinstance(value, Tensor)
    }
    return replace(teacher, **tensors)


def _vocabulary(student: Head, teacher: Head | TopK | None, vocab_size: int | None) -> int:
    """Number of real tokens; ValueError where that is not certain."""
    sizes = [len(head.weight) for head in (student, teacher) if isinstance(head, Head)]
    if vocab_size is None:
        if len(set(sizes)) > 1:
            raise ValueError(
                f"the heads have {sizes[0]} (student) and {sizes[1]} (teacher) positions: some are padding; "
                "give vocab_size, the number of tokens that both have"
            )
        return sizes[0]
    if not 0 < vocab_size <= min(sizes):
        raise ValueError(f"vocab_size {vocab_size} does not fit heads with {sizes} positions")
    return vocab_size


def _check_ids(ids: Tensor, tokens: Tokens, num_tokens: int) -> None:
    """ValueError where a position that counts names a token outside the real vocabulary."""
    counted = ids[tokens.weights != 0]
    if counted.numel() > 0:
        low, high = (int(bound) for bound in counted.aminmax())
        if low < 0 or high >= num_tokens:
            raise ValueError(f"token {low if low < 0 else high} does not exist in a vocabulary of {num_tokens}")


def _check_positions(student: Head, teacher: Head | TopK | None, tokens: Tokens) -> None:
    """ValueError where two tensors disagree on the number of positions or a head does not fit its hidden states."""
    num_positions = len(student.hidden)
    given = {f"tokens.{name}": value for name, value in vars(tokens).items()}
    if teacher is not None:
        given |= {f"teacher.{name}": value for name, value in vars(teacher).items() if name not in ("weight", "bias")}
    for name, value in given.items():
        if isinstance(value, Tensor) and len(value) != num_positions:
            raise ValueError(f"{name} has {len(value)} positions, student.hidden has {num_positions}")
    for name, head in (("student", student), ("teacher", teacher)):
        if isinstance(head, Head) and (head.hidden.dim() != 2 or head.hidden.shape[1] != head.weight.shape[1]):
            raise ValueError(
                f"{name}.hidden {tuple(head.hidden.shape)} does not fit {name}.weight {tuple(head.weight.shape)}"
            )
    if isinstance(teacher, TopK) and teacher.ids.shape != teacher.log_probs.shape:
        raise ValueError(
            f"teacher.ids {tuple(teacher.ids.shape)} and teacher.log_probs {tuple(teacher.log_probs.shape)} differ"
        )
