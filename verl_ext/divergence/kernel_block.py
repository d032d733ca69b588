"""A block of positions on a GPU: log-probabilities are never written down, kernels.py reads the logits where it must.

The gradient goes to a buffer of its own in the type of the products that follow, rounded once: tokens that a term names
(a top-k, the sampled one) are computed apart, whole, and written over what the pass over all tokens left there.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from verl_ext.divergence.kernels import FullTerm, Normaliser, Values, add_gradient, evaluate, normalise
from verl_ext.divergence.pointwise import (
    DERIVATIVE_SUMS,
    DISTRIBUTION_DIVERGENCES,
    LOG_ZERO,
    distribution_divergence,
)
from verl_ext.divergence.softmax import find, largest
from verl_ext.divergence.spec import Term
from verl_ext.divergence.support import Block, Measured
from verl_ext.divergence.token_weight import clip_entries


@dataclass(kw_only=True)
class LogitSide:
    """Finite float32 logits [n, V] of one side and their normaliser."""

    logits: Tensor
    normaliser: Normaliser
    tops: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def argmax(self) -> Tensor:
        """The most probable token [n]."""
        return self.normaliser.argmax

    def at(self, ids: Tensor) -> Tensor:
        """Log-probabilities [n, E] at ids [n, E]."""
        return _minus(self.logits.gather(-1, ids), self.normaliser)

    def entropy(self) -> Tensor:
        """[n], nats."""
        return self.normaliser.entropy

    def top(self, top_k: int) -> tuple[Tensor, Tensor]:
        """ids and log-probs [n, k] of the most probable tokens."""
        if top_k not in self.tops:
            ids, logits = largest(self.logits, top_k, self.normaliser.maxima)
            self.tops[top_k] = ids, _minus(logits, self.normaliser)
        return self.tops[top_k]

    def outside(self, ids: Tensor) -> tuple[Tensor, "Outside"]:
        """Log of the probability outside `ids` [n, 1], and the normaliser of the tokens there."""
        inside = self.logits.gather(-1, ids)
        self.logits.scatter_(-1, ids, LOG_ZERO)
        normaliser = normalise(self.logits)
        self.logits.scatter_(-1, ids, inside)
        rest = (normaliser.high - self.normaliser.high) + (normaliser.low - self.normaliser.low)
        return rest.unsqueeze(-1), Outside(ids=ids, normaliser=normaliser)


@dataclass(frozen=True, kw_only=True)
class Outside:
    """The tokens that are not among `ids` [n, K]."""

    ids: Tensor
    normaliser: Normaliser


@dataclass(kw_only=True)
class KernelBlock(Block):
    """Logits of both sides; what the terms over all tokens and over the rest of a support have left, as instructions.

    `factor` is d(finished logit) / d(raw logit), the same for all tokens.
    """

    student: LogitSide
    teacher: LogitSide | None
    factor: float
    full_terms: list[tuple[FullTerm, Tensor, Values]] = field(default_factory=list)
    outsides: list[tuple[Outside, Tensor]] = field(default_factory=list)

    def full(self, term: Term) -> Measured:
        """Every token is an event. Values that nothing waits for are found on the way to the gradient."""
        name = distribution_divergence(term.divergence, term.beta)
        entry_clip = float("inf") if term.entry_clip is None else term.entry_clip
        kernel_term = FullTerm(divergence=name, beta=term.beta or 0.0, entry_clip=entry_clip)
        if name in DERIVATIVE_SUMS and term.entry_clip is None and term.position_clip is None:
            zeros = torch.zeros_like(self.student.normaliser.high)
            values = Values(terms=zeros, derivatives=zeros + DERIVATIVE_SUMS[name])
        else:
            values = evaluate(
                student=self.student.logits,
                teacher=self._teacher().logits,
                normalisers=(self.student.normaliser, self._teacher().normaliser),
                term=kernel_term,
            )
        return values.terms, lambda scale: self.full_terms.append((kernel_term, scale, values))

    def add_outside(self, outside: Outside, derivative: Tensor) -> None:
        """Spread a derivative [n, 1] over the tokens outside a support."""
        self.outsides.append((outside, derivative.squeeze(-1).contiguous()))

    def write_gradient(self, out: Tensor) -> None:
        """Send the derivative through the softmax: derivative - p_S * its sum, in one pass for each term or rest."""
        total = torch.zeros_like(self.student.normaliser.high)
        for _, derivative in self.sparse:
            total += derivative.sum(-1)
        for _, spread in self.outsides:
            total += spread
        for _, scale, values in self.full_terms:
            total += scale * values.derivatives
        self._write_all(out, centre=-total)
        if self.sparse:
            ids = torch.cat([ids for ids, _ in self.sparse], -1)
            out.scatter_(-1, ids, self._at_tokens(ids, centre=-total).to(out.dtype))

    def _write_all(self, out: Tensor, *, centre: Tensor) -> None:
        """The gradient of all tokens, as if none were named."""
        num_passes = max(1, len(self.full_terms), len(self.outsides))
        # Sums of several passes are rounded once, at the end.
        target = out if num_passes == 1 else torch.empty_like(out, dtype=torch.float32)
        for index in range(num_passes):
            term, scale, values = self.full_terms[index] if index < len(self.full_terms) else (None, None, None)
            outside = self.outsides[index] if index < len(self.outsides) else None
            found = add_gradient(
                student=self.student.logits,
                teacher=None if self.teacher is None else self.teacher.logits,
                normalisers=(self.student.normaliser, None if self.teacher is None else self.teacher.normaliser),
                term=term,
                out=target,
                scale=scale,
                centre=centre if index == 0 else None,
                outside=None if outside is None else (outside[0].normaliser, outside[1]),
                factor=self.factor,
                accumulate=index > 0,
            )
            if values is not None and found is not None:
                values.terms.copy_(found.terms)
        if target is not out:
            out.copy_(target)

    def _at_tokens(self, ids: Tensor, *, centre: Tensor) -> Tensor:
        """The gradient [n, E] at the named tokens ids [n, E], where every contribution is added in float32."""
        student = self.student.at(ids)
        gradient = centre.unsqueeze(-1) * student.exp()
        for term, scale, _ in self.full_terms:
            teacher = self._teacher().at(ids)
            divergence = DISTRIBUTION_DIVERGENCES[term.divergence]
            terms, derivatives = divergence(student, teacher, student.exp(), teacher.exp(), term.beta)
            clip_entries(terms=terms, derivatives=derivatives, maximum=term.entry_clip)
            gradient += scale.unsqueeze(-1) * derivatives
        for named, derivative in self.sparse:
            found, index = find(ids, among=named)
            gradient += torch.where(found, derivative.gather(-1, index), 0)
        for outside, spread in self.outsides:
            inside, _ = find(ids, among=outside.ids)
            share = _minus(self.student.logits.gather(-1, ids), outside.normaliser).masked_fill(inside, LOG_ZERO)
            gradient += spread.unsqueeze(-1) * share.exp()
        return gradient * self.factor

    def _teacher(self) -> LogitSide:
        assert self.teacher is not None, "check_fit refuses full support without the teacher's vocabulary"
        return self.teacher


def logit_side(logits: Tensor) -> LogitSide:
    """A side from finite logits; reads them once."""
    return LogitSide(logits=logits, normaliser=normalise(logits))


def _minus(logits: Tensor, normaliser: Normaliser) -> Tensor:
    """Log-probabilities [n, E]."""
    return (logits - normaliser.high.unsqueeze(-1)) - normaliser.low.unsqueeze(-1)
