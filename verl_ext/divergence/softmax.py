"""Softmax of a block of logits, written down, and searches in wide blocks: the largest of a row, ids among others."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from verl_ext.divergence.pointwise import LOG_ZERO

PIECE = 128
"""Entries of a row whose maximum is taken at once, before anything is searched."""


@dataclass(kw_only=True)
class Softmax:
    """log_probs [n, V], probs [n, V] and argmax [n] of a block; tops remembers what `top` found."""

    log_probs: Tensor
    probs: Tensor
    argmax: Tensor
    tops: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def at(self, ids: Tensor) -> Tensor:
        """Log-probabilities [n, E] at ids [n, E]."""
        return self.log_probs.gather(-1, ids)

    def entropy(self) -> Tensor:
        """[n], nats."""
        if self.probs.device.type != "cpu":
            return -torch.linalg.vecdot(self.probs, self.log_probs)
        # On a CPU, vecdot writes all products down before it sums them.
        return -torch.stack([torch.dot(*row) for row in zip(self.probs, self.log_probs, strict=True)])

    def top(self, top_k: int) -> tuple[Tensor, Tensor]:
        """ids and log-probs [n, k] of the most probable tokens."""
        if top_k not in self.tops:
            self.tops[top_k] = largest(self.log_probs, top_k)
        return self.tops[top_k]

    def outside(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the probability outside `ids` [n, 1], and how it is spread over the tokens [n, V], 0 at the ids."""
        spread = self.log_probs.scatter(-1, ids, LOG_ZERO)
        highest = spread.amax(-1, keepdim=True)
        spread.sub_(highest).exp_()
        total = spread.sum(-1, keepdim=True)
        return highest + total.log(), spread.div_(total)


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


def largest(rows: Tensor, top_k: int, maxima: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Positions and values [n, k] of the k largest, largest first, searched in the k pieces with the largest maxima.

    No other piece can hold one of them: k pieces have an entry as large as its maximum. `maxima` [n, V // PIECE] are
    those of the whole pieces, where somebody has them already.
    """
    width = rows.shape[-1] // PIECE * PIECE
    if top_k * PIECE >= width:
        values, positions = rows.topk(top_k, -1)
        return positions, values
    pieces = rows[:, :width].unflatten(-1, (-1, PIECE))
    maxima = pieces.amax(-1) if maxima is None else maxima
    chosen = maxima.topk(top_k, -1, sorted=False).indices
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


def find(ids: Tensor, *, among: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each of ids [n, E] is among those [n, K], distinct at each position, and where; both [n, E]."""
    ordered, order = among.sort(-1)
    place = torch.searchsorted(ordered, ids.contiguous()).clamp(max=among.shape[-1] - 1)
    return ordered.gather(-1, place) == ids, order.gather(-1, place)
