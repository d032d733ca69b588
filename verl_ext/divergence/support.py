"""Supports and their tails: on which events a divergence looks, and how its derivative gets back to the logits.

Everything works on a block of positions that fits the cache (on a GPU: keeps it busy): log-probabilities [n, V] of the
student and perhaps of the teacher. A support turns them into log-probabilities [n, E] of events; what a divergence
says about the events comes back as a derivative by the student's log-probabilities, dense [n, V] or at ids [n, K].
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from verl_ext.divergence.pointwise import LOG_ZERO, LogProbs, log_probs_of
from verl_ext.divergence.spec import Term, TopK

TAIL_RESOLUTION = 8 * torch.finfo(torch.float32).eps
"""What float32 log-probabilities of a top-k leave below this is no knowledge of the tail, but rounding."""

PIECE = 128
"""Entries of a row whose maximum is taken at once, before anything is searched."""


@dataclass(kw_only=True)
class Softmax:
    """log_probs [n, V], probs [n, V] and argmax [n] of a block; tops remembers what `top` found."""

    log_probs: Tensor
    probs: Tensor
    argmax: Tensor
    tops: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def entropy(self) -> Tensor:
        """[n], nats."""
        if self.probs.device.type != "cpu":
            return -torch.linalg.vecdot(self.probs, self.log_probs)
        # On a CPU, vecdot writes all products down before it sums them.
        return -torch.stack([torch.dot(*row) for row in zip(self.probs, self.log_probs, strict=True)])

    def top(self, top_k: int) -> tuple[Tensor, Tensor]:
        """ids and log-probs [n, k] of the most probable tokens."""
        if top_k not in self.tops:
            self.tops[top_k] = _top(self.log_probs, top_k)
        return self.tops[top_k]


@dataclass(kw_only=True)
class Block:
    """A block of positions, and the derivative by the student's log-probabilities that its terms have left so far.

    `teacher` is None where the teacher is a `top_k` or nobody. ids, old_log_probs and advantages are
    [n, 1]. The last term may overwrite the teacher's tensors.
    """

    student: Softmax
    teacher: Softmax | None
    top_k: TopK | None
    ids: Tensor | None
    old_log_probs: Tensor | None
    advantages: Tensor | None = None
    is_last_term: bool = False
    dense: Tensor | None = None
    sparse: list[tuple[Tensor, Tensor]] = field(default_factory=list)

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

    def add_dense(self, derivative: Tensor) -> None:
        """Add d / d(student log-probability) of every token; takes the tensor over."""
        self.dense = derivative if self.dense is None else self.dense.add_(derivative)

    def logits_gradient(self, out: Tensor) -> None:
        """Send the derivative through the softmax: derivative - p_S * its sum. Overwrites the student's probs."""
        total = torch.zeros_like(self.student.probs[:, :1])
        for _, derivative in self.sparse:
            total += derivative.sum(-1, keepdim=True)
        if self.dense is not None:
            total += self.dense.sum(-1, keepdim=True)
        torch.mul(self.student.probs, -total, out=out)
        if self.dense is not None:
            out.add_(self.dense)
        for ids, derivative in self.sparse:
            out.scatter_add_(-1, ids, derivative)


@dataclass(frozen=True, kw_only=True)
class Events:
    """What a divergence sees, and the way back: `pull` adds the derivative [n, E] by the events to the block."""

    log_probs: LogProbs
    pull: Callable[[Tensor], None]


def softmax_in_place(logits: Tensor, *, probs: Tensor) -> Softmax:
    """Softmax of finite rows; their memory becomes the log-probabilities, that of `probs` the probabilities.

    The log-sum-exp is subtracted in two parts: rounding one number of size 10 would shift all log-probabilities of a
    row alike, and that error, unlike those of single entries, does not average out.
    """
    highest, argmax = _highest(logits)
    torch.sub(logits, highest, out=probs).exp_()
    total = probs.sum(-1, keepdim=True)
    probs.mul_(total.reciprocal())
    exact = highest.double() + total.double().log()
    rounded = exact.to(logits.dtype)
    logits.sub_(rounded).sub_((exact - rounded).to(logits.dtype))
    return Softmax(log_probs=logits, probs=probs, argmax=argmax)


def _top(rows: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Positions and values [n, k] of the k largest, largest first, searched in the k pieces with the largest maxima.

    No other piece can hold one of them: k pieces have an entry as large as its maximum.
    """
    width = rows.shape[-1] // PIECE * PIECE
    if top_k * PIECE >= width:
        values, positions = rows.topk(top_k, -1)
        return positions, values
    pieces = rows[:, :width].unflatten(-1, (-1, PIECE))
    chosen = pieces.amax(-1).topk(top_k, -1, sorted=False).indices
    inside = pieces.gather(1, chosen.unsqueeze(-1).expand(-1, -1, PIECE)).flatten(1)
    values, where = torch.cat([inside, rows[:, width:]], -1).topk(top_k, -1)
    piece = chosen.gather(-1, (where // PIECE).clamp(max=top_k - 1))
    beyond = width + where - inside.shape[-1]
    return torch.where(where < inside.shape[-1], piece * PIECE + where % PIECE, beyond), values


def _highest(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum [n, 1] and its position [n]. Maxima are fast, searching positions is not: search in one piece."""
    width = rows.shape[-1] // PIECE * PIECE
    if width == 0:
        highest, position = rows.max(-1, keepdim=True)
        return highest, position.squeeze(-1)
    pieces = rows[:, :width].unflatten(-1, (-1, PIECE))
    highest, piece = pieces.amax(-1).max(-1, keepdim=True)
    inside = pieces[torch.arange(len(rows), device=rows.device), piece.squeeze(-1)].argmax(-1)
    position = piece.squeeze(-1) * PIECE + inside
    if width == rows.shape[-1]:
        return highest, position
    last, where = rows[:, width:].max(-1, keepdim=True)
    position = torch.where((last > highest).squeeze(-1), width + where.squeeze(-1), position)
    return torch.maximum(highest, last), position


def full(block: Block, _: Term) -> Events:
    """Every token is an event."""
    student, teacher = block.student, block.teacher
    assert teacher is not None, "check_fit refuses full support without the teacher's vocabulary"
    keep = (lambda tensor: tensor) if block.is_last_term else Tensor.clone
    log_probs = LogProbs(
        student=student.log_probs,
        teacher=keep(teacher.log_probs),
        student_probs=student.probs,
        teacher_probs=keep(teacher.probs),
    )
    return Events(log_probs=log_probs, pull=block.add_dense)


def sampled(block: Block, _: Term) -> Events:
    """The sampled token is the only event. Without a teacher (hard labels) its log-probability counts as 0."""
    assert block.ids is not None, "check_fit refuses sampled support without ids"
    student = block.student.log_probs.gather(-1, block.ids)
    teacher = torch.zeros_like(student) if block.teacher is None else block.teacher.log_probs.gather(-1, block.ids)
    log_probs = log_probs_of(student=student, teacher=teacher, old=block.old_log_probs, advantage=block.advantages)
    return Events(log_probs=log_probs, pull=lambda derivative: _add_sparse(block, block.ids, derivative))


def teacher_topk(block: Block, term: Term) -> Events:
    """The teacher's most probable tokens, and what the tail makes of the rest."""
    ids, log_probs = block.teacher_top(term.top_k)
    return _with_tail(block, term, ids, log_probs.to(block.student.log_probs).clamp(min=LOG_ZERO))


def student_topk(block: Block, term: Term) -> Events:
    """The student's most probable tokens, and what the tail makes of the rest."""
    assert block.teacher is not None, "check_fit refuses student_topk without the teacher's vocabulary"
    assert term.top_k is not None, "check_fit asks for top_k"
    ids, _ = block.student.top(term.top_k)
    return _with_tail(block, term, ids, block.teacher.log_probs.gather(-1, ids))


SUPPORTS: dict[str, Callable[[Block, Term], Events]] = {
    "full": full,
    "teacher_topk": teacher_topk,
    "student_topk": student_topk,
    "sampled": sampled,
}


def _with_tail(block: Block, term: Term, ids: Tensor, teacher: Tensor) -> Events:
    student = block.student.log_probs.gather(-1, ids)
    if term.tail == "bucket" and ids.shape[-1] < block.student.log_probs.shape[-1]:
        return _with_bucket(block, ids, student, teacher)
    if term.tail in ("renormalize", "renormalize_teacher"):
        teacher = teacher.log_softmax(-1)
    if term.tail != "renormalize":
        log_probs = log_probs_of(student=student, teacher=teacher)
        return Events(log_probs=log_probs, pull=lambda derivative: _add_sparse(block, ids, derivative))

    student = student.log_softmax(-1)

    def pull(derivative: Tensor) -> None:
        _add_sparse(block, ids, derivative - student.exp() * derivative.sum(-1, keepdim=True))

    return Events(log_probs=log_probs_of(student=student, teacher=teacher), pull=pull)


def _with_bucket(block: Block, ids: Tensor, student: Tensor, teacher: Tensor) -> Events:
    """The rest of the vocabulary as one more event, its probability a sum over its own tokens: nothing cancels."""
    student_rest, spread = _outside(block.student, ids)
    if block.teacher is not None:
        teacher_rest, _ = _outside(block.teacher, ids)
    else:
        rest = 1 - teacher.double().exp().sum(-1, keepdim=True)
        unknown = student_rest.clamp(max=torch.log(torch.tensor(TAIL_RESOLUTION)).item())
        teacher_rest = torch.where(rest > TAIL_RESOLUTION, rest.clamp_min(TAIL_RESOLUTION).log().to(teacher), unknown)

    def pull(derivative: Tensor) -> None:
        _add_sparse(block, ids, derivative[:, :-1])
        block.add_dense(spread.mul_(derivative[:, -1:]))

    log_probs = log_probs_of(
        student=torch.cat([student, student_rest], -1), teacher=torch.cat([teacher, teacher_rest], -1)
    )
    return Events(log_probs=log_probs, pull=pull)


def _outside(softmax: Softmax, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the probability outside `ids` [n, 1], and how it is spread over the tokens [n, V], 0 at the ids."""
    spread = softmax.log_probs.scatter(-1, ids, LOG_ZERO)
    highest = spread.amax(-1, keepdim=True)
    spread.sub_(highest).exp_()
    total = spread.sum(-1, keepdim=True)
    return highest + total.log(), spread.div_(total)


def _add_sparse(block: Block, ids: Tensor | None, derivative: Tensor) -> None:
    assert ids is not None, "a sparse derivative has ids"
    block.sparse.append((ids, derivative))
