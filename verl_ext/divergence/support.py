"""Supports and their tails: on which events a divergence looks, and how its derivative gets back to the logits.

A support turns the log-probabilities of a block of positions into those [n, E] of events; what a divergence says about
the events comes back as a derivative by the student's log-probabilities, of all tokens [n, V] or at ids [n, K]. Who
holds the log-probabilities of all tokens, and how, is the block's affair (whole_block.py, kernel_block.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from verl_ext.divergence.pointwise import (
    DISTRIBUTION_DIVERGENCES,
    LOG_ZERO,
    SAMPLED_DIVERGENCES,
    SampledLogProbs,
    distribution_divergence,
)
from verl_ext.divergence.spec import Term, TopK
from verl_ext.divergence.token_weight import clip_entries

TAIL_RESOLUTION = 8 * torch.finfo(torch.float32).eps
"""What float32 log-probabilities of a top-k leave below this is no knowledge of the tail, but rounding."""


class Side(Protocol):
    """The student, or the teacher, at a block of positions."""

    @property
    def argmax(self) -> Tensor:
        """The most probable token [n]."""

    def at(self, ids: Tensor) -> Tensor:
        """Log-probabilities [n, E] at ids [n, E]."""

    def entropy(self) -> Tensor:
        """[n], nats."""

    def top(self, top_k: int) -> tuple[Tensor, Tensor]:
        """ids and log-probs [n, k] of the most probable tokens."""

    def outside(self, ids: Tensor) -> tuple[Tensor, Any]:
        """Log of the probability outside `ids` [n, 1], and what the block's `add_outside` takes with it."""


Pull = Callable[[Tensor], None]
"""Sends a derivative, or a factor [n] of what is to be sent, back to the logits."""

Measured = tuple[Tensor, Pull]
"""Values [n] of a term, and the way back: `pull(scale)` [n] adds scale * d(value) to the block's gradient. The values
stand for certain only after the block's `write_gradient`, or where the term has a position clip."""


@dataclass(kw_only=True)
class Block:
    """A block of positions, and the derivative by the student's log-probabilities that its terms have left so far.

    `teacher` is None where the teacher is a `top_k` or nobody. ids, old_log_probs and advantages are
    [n, 1]; num_tokens is the size of the vocabulary.
    """

    num_tokens: int
    student: Side
    teacher: Side | None
    top_k: TopK | None
    ids: Tensor | None
    old_log_probs: Tensor | None
    advantages: Tensor | None
    sparse: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def full(self, term: Term) -> Measured:
        """Every token is an event."""
        raise NotImplementedError

    def add_outside(self, outside: Any, derivative: Tensor) -> None:
        """Add a derivative [n, 1] by the log-probability of what a `Side.outside` found."""
        raise NotImplementedError

    def write_gradient(self, out: Tensor) -> None:
        """Send all derivatives through the softmax: out [n, V] becomes the gradient by the logits."""
        raise NotImplementedError

    def teacher_top(self, top_k: int | None) -> tuple[Tensor, Tensor]:
        """ids and log-probs [n, k] of the teacher's most probable tokens; all that a `TopK` has for None."""
        if self.top_k is None:
            assert self.teacher is not None, "check_fit refuses a top-k support without a teacher"
            assert top_k is not None, "check_fit asks for top_k"
            return self.teacher.top(top_k)
        if top_k is None or top_k == self.top_k.ids.shape[-1]:
            return self.top_k.ids, self.top_k.log_probs
        top = self.top_k.log_probs.topk(top_k, -1)
        return self.top_k.ids.gather(-1, top.indices), top.values


def measure(
    term: Term, *, student: Tensor, teacher: Tensor, pull: Pull, probs: tuple[Tensor, Tensor] | None = None
) -> Measured:
    """A divergence of two distributions on events: log-probabilities [n, E], and probabilities if they are known.

    `pull` takes the derivative [n, E] by the student's log-probabilities of the events.
    """
    divergence = DISTRIBUTION_DIVERGENCES[distribution_divergence(term.divergence, term.beta)]
    student_prob, teacher_prob = probs or (student.exp(), teacher.exp())
    return _clipped(divergence(student, teacher, student_prob, teacher_prob, term.beta or 0.0), term, pull)


def _clipped(measured: tuple[Tensor, Tensor], term: Term, pull: Pull) -> Measured:
    terms, derivatives = measured
    if term.entry_clip is not None:
        clip_entries(terms=terms, derivatives=derivatives, maximum=term.entry_clip)
    return terms.sum(-1), lambda scale: pull(derivatives.mul_(scale.unsqueeze(-1)))


def full(block: Block, term: Term) -> Measured:
    """Every token is an event."""
    return block.full(term)


def sampled(block: Block, term: Term) -> Measured:
    """The sampled token is the only event. Without a teacher (hard labels) its log-probability counts as 0."""
    assert block.ids is not None, "check_fit refuses sampled support without ids"
    student, ids = block.student.at(block.ids), block.ids
    teacher = torch.zeros_like(student) if block.teacher is None else block.teacher.at(block.ids)
    log_probs = SampledLogProbs(student=student, teacher=teacher, old=block.old_log_probs, advantage=block.advantages)
    found = SAMPLED_DIVERGENCES[term.divergence](log_probs, term)
    return _clipped(found, term, lambda derivative: block.sparse.append((ids, derivative)))


def teacher_topk(block: Block, term: Term) -> Measured:
    """The teacher's most probable tokens, and what the tail makes of the rest."""
    ids, log_probs = block.teacher_top(term.top_k)
    student = block.student.at(ids)
    return _with_tail(block, term, ids=ids, student=student, teacher=log_probs.to(student).clamp(min=LOG_ZERO))


def student_topk(block: Block, term: Term) -> Measured:
    """The student's most probable tokens, and what the tail makes of the rest."""
    assert block.teacher is not None, "check_fit refuses student_topk without the teacher's vocabulary"
    assert term.top_k is not None, "check_fit asks for top_k"
    ids, student = block.student.top(term.top_k)
    return _with_tail(block, term, ids=ids, student=student, teacher=block.teacher.at(ids))


SUPPORTS: dict[str, Callable[[Block, Term], Measured]] = {
    "full": full,
    "teacher_topk": teacher_topk,
    "student_topk": student_topk,
    "sampled": sampled,
}


def _with_tail(block: Block, term: Term, *, ids: Tensor, student: Tensor, teacher: Tensor) -> Measured:
    def add_sparse(derivative: Tensor) -> None:
        block.sparse.append((ids, derivative))

    if term.tail == "bucket" and ids.shape[-1] < block.num_tokens:
        return _with_bucket(block, term, ids=ids, student=student, teacher=teacher)
    if term.tail in ("renormalize", "renormalize_teacher"):
        teacher = teacher.log_softmax(-1)
    if term.tail != "renormalize":
        return measure(term, student=student, teacher=teacher, pull=add_sparse)

    student = student.log_softmax(-1)

    def pull(derivative: Tensor) -> None:
        add_sparse(derivative - student.exp() * derivative.sum(-1, keepdim=True))

    return measure(term, student=student, teacher=teacher, pull=pull)


def _with_bucket(block: Block, term: Term, *, ids: Tensor, student: Tensor, teacher: Tensor) -> Measured:
    """The rest of the vocabulary as one more event, its probability a sum over its own tokens: nothing cancels."""
    student_rest, outside = block.student.outside(ids)
    if block.teacher is not None:
        teacher_rest, _ = block.teacher.outside(ids)
    else:
        rest = 1 - teacher.double().exp().sum(-1, keepdim=True)
        unknown = student_rest.clamp(max=torch.log(torch.tensor(TAIL_RESOLUTION)).item())
        teacher_rest = torch.where(rest > TAIL_RESOLUTION, rest.clamp_min(TAIL_RESOLUTION).log().to(teacher), unknown)

    def pull(derivative: Tensor) -> None:
        block.sparse.append((ids, derivative[:, :-1]))
        block.add_outside(outside, derivative[:, -1:])

    return measure(
        term,
        student=torch.cat([student, student_rest], -1),
        teacher=torch.cat([teacher, teacher_rest], -1),
        pull=pull,
    )
