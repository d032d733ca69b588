"""Triton kernels over the logits of a block of positions: one program a position, one reading of its logits a pass.

`normalise` reads a side once for everything that a softmax needs; `add_gradient` reads both sides once for the value
of a divergence and the gradient by the student's logits. The divergences are the functions of pointwise.py, compiled as
they stand. Everything is computed in float32, the normaliser's last step in float64.
"""

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from verl_ext.divergence import pointwise
from verl_ext.divergence.softmax import PIECE

LANES = 1024
"""Entries of a row that a program works on at a time; chosen with the number of warps on an H200."""

WARPS = 8


@dataclass(frozen=True, kw_only=True)
class Normaliser:
    """Of logits [n, V]: log-sum-exp = high + low [n] (one float32 would shift a whole row by its rounding), entropy in
    nats [n], the most probable token [n], and the maximum of every whole PIECE of a row [n, V // PIECE]."""

    high: Tensor
    low: Tensor
    entropy: Tensor
    argmax: Tensor
    maxima: Tensor


@dataclass(frozen=True, kw_only=True)
class FullTerm:
    """A divergence over all tokens: its name in pointwise.py, beta, and the limit of every entry (inf for none)."""

    divergence: str
    beta: float
    entry_clip: float


@dataclass(frozen=True, kw_only=True)
class Values:
    """Per position [n]: the sum of a term's entries, and of their derivatives by the student's log-probabilities."""

    terms: Tensor
    derivatives: Tensor


def normalise(logits: Tensor) -> Normaliser:
    """Normaliser of finite float32 logits [n, V]; reads them once."""
    num_positions, num_tokens = logits.shape
    numbers = logits.new_empty((3, num_positions))
    argmax = torch.empty(num_positions, dtype=torch.int64, device=logits.device)
    num_pieces = num_tokens // PIECE
    maxima = logits.new_empty((num_positions, num_pieces))
    if num_positions > 0:
        _normalise[(num_positions,)](
            logits,
            *numbers,
            argmax,
            maxima,
            logits.stride(0),
            num_tokens,
            num_pieces,
            LANES=max(PIECE, _lanes(num_tokens)),
            PIECE=PIECE,
            num_warps=WARPS,
        )
    return Normaliser(high=numbers[0], low=numbers[1], entropy=numbers[2], argmax=argmax, maxima=maxima)


def scale_in_place(values: Tensor, scale: Tensor) -> None:
    """values *= scale (a float32 scalar on the same device), rounded once; where the scale is 1 nothing is touched."""
    if values.numel() > 0:
        _scale[(triton.cdiv(values.numel(), LANES),)](values, scale, values.numel(), LANES=LANES)


def evaluate(*, student: Tensor, teacher: Tensor, normalisers: tuple[Normaliser, Normaliser], term: FullTerm) -> Values:
    """Values of a term on logits [n, V]; reads both sides once."""
    return _launch(student=student, teacher=teacher, normalisers=normalisers, term=term)


def add_gradient(
    *,
    student: Tensor,
    teacher: Tensor | None,
    normalisers: tuple[Normaliser, Normaliser | None],
    term: FullTerm | None,
    out: Tensor,
    scale: Tensor | None = None,
    centre: Tensor | None = None,
    outside: tuple[Normaliser, Tensor] | None = None,
    factor: float = 1.0,
    accumulate: bool = False,
) -> Values | None:
    """out [n, V] = factor * (scale * term's derivative + centre * p_S + spread * exp(logit - outside)), or += it.

    Reads both sides once (the student alone without a term), writes `out` in its own type.

    Args:
        student, teacher: logits [n, V].
        normalisers: of both.
        term: whose derivative is wanted; None for no term.
        out: gradient by the student's logits.
        scale: [n], of the term.
        centre: [n], of the student's probabilities; None for 0.
        outside: normaliser of the logits outside some tokens, and the derivative [n] that is spread over them.
        factor: of everything.
        accumulate: add to what `out` holds.

    Returns:
        The term's values.
    """
    return _launch(
        student=student,
        teacher=teacher,
        normalisers=normalisers,
        term=term,
        out=out,
        scale=scale,
        centre=centre,
        outside=outside,
        factor=factor,
        accumulate=accumulate,
    )


def _launch(
    *,
    student: Tensor,
    teacher: Tensor | None,
    normalisers: tuple[Normaliser, Normaliser | None],
    term: FullTerm | None,
    out: Tensor | None = None,
    scale: Tensor | None = None,
    centre: Tensor | None = None,
    outside: tuple[Normaliser, Tensor] | None = None,
    factor: float = 1.0,
    accumulate: bool = False,
) -> Any:
    num_positions, num_tokens = student.shape
    student_normaliser, teacher_normaliser = normalisers
    sums = student.new_empty((2, num_positions)) if term is not None else None
    if num_positions > 0:
        _visit[(num_positions,)](
            student,
            teacher,
            out,
            student_normaliser.high,
            student_normaliser.low,
            None if term is None or teacher_normaliser is None else teacher_normaliser.high,
            None if term is None or teacher_normaliser is None else teacher_normaliser.low,
            scale,
            centre,
            None if outside is None else outside[0].high,
            None if outside is None else outside[0].low,
            None if outside is None else outside[1],
            None if sums is None else sums[0],
            None if sums is None else sums[1],
            student.stride(0),
            0 if teacher is None else teacher.stride(0),
            0 if out is None else out.stride(0),
            num_tokens,
            0.0 if term is None else term.beta,
            0.0 if term is None else term.entry_clip,
            factor,
            DIVERGENCE=None if term is None else compiled(term.divergence),
            CLIPS=term is not None and term.entry_clip != float("inf"),
            ACCUMULATE=accumulate,
            LANES=_lanes(num_tokens),
            num_warps=WARPS,
        )
    return None if sums is None else Values(terms=sums[0], derivatives=sums[1])


def compiled(divergence: str) -> Any:
    """The divergence of that name as a Triton function, from the source of pointwise.py."""
    return _compile(pointwise.DISTRIBUTION_DIVERGENCES[divergence])


@cache
def _compile(function: Callable[..., Any]) -> Any:
    # The same source without annotations, which mean nothing in a kernel, and with Triton's meaning of the names in it.
    # Triton looks for the source where Python says it is, so it is left where debuggers look for generated code.
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef), "a divergence is a plain function"
    definition.returns = None
    for argument in definition.args.args:
        argument.annotation = None
    source, file = ast.unparse(tree), f"<kernel of {function.__qualname__}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names: dict[str, Any] = {"__name__": __name__, **NAMES}
    exec(compile(source, file, "exec"), names)
    return triton.jit(names[definition.name])


def _lanes(num_tokens: int) -> int:
    return min(LANES, triton.next_power_of_2(num_tokens))


@triton.jit
def _at_least(values, low):
    return tl.maximum(values, low)


@triton.jit
def _log(values):
    return tl.log(values)


@triton.jit
def _where(condition, yes, no):
    return tl.where(condition, yes, no)


_LOG_ZERO = tl.constexpr(pointwise.LOG_ZERO)

NAMES = MappingProxyType({"log": _log, "where": _where, "at_least": _at_least, "LOG_ZERO": _LOG_ZERO, "tl": tl})
"""What the names of a divergence mean in a kernel (`tl` is for the interpreter)."""


@triton.jit
def _scale(values, scale, num_values, LANES: tl.constexpr):
    scale = tl.load(scale)
    if scale != 1.0:
        ids = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
        value = tl.load(values + ids, mask=ids < num_values, other=0.0).to(tl.float32)
        tl.store(values + ids, (value * scale).to(values.dtype.element_ty), mask=ids < num_values)


@triton.jit
def _normalise(
    logits,
    high_out,
    low_out,
    entropy_out,
    argmax_out,
    maxima_out,
    stride,
    num_tokens,
    num_pieces,
    LANES: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Every lane keeps its own running maximum m, sum of exp(x - m) and of exp(x - m) (x - m): one exp a logit."""
    position = tl.program_id(0).to(tl.int64)
    logits += position * stride
    lanes = tl.arange(0, LANES)
    highest = tl.full([LANES], _LOG_ZERO, tl.float32)
    where_highest = tl.zeros([LANES], tl.int32)
    total = tl.zeros([LANES], tl.float32)
    weighted = tl.zeros([LANES], tl.float32)
    for start in range(0, num_tokens, LANES):
        ids = start + lanes
        logit = tl.load(logits + ids, mask=ids < num_tokens, other=_LOG_ZERO)
        pieces = start // PIECE + tl.arange(0, LANES // PIECE)
        maxima = tl.max(tl.reshape(logit, [LANES // PIECE, PIECE]), 1)
        tl.store(maxima_out + position * num_pieces + pieces, maxima, mask=pieces < num_pieces)
        above = logit - highest
        rises = above > 0
        # exp(x - m) where the maximum stays, and what the sums shrink by where x is the new one.
        decay = tl.exp(-tl.abs(above))
        weighted = tl.where(rises, decay * (weighted - total * above), weighted + decay * above)
        total = tl.where(rises, decay * total + 1.0, total + decay)
        highest = tl.where(rises, logit, highest)
        where_highest = tl.where(rises, ids, where_highest)
    maximum = tl.max(highest, 0)
    shift = highest - maximum
    share = tl.exp(shift)
    weighted_sum = tl.sum(share * (weighted + total * shift), 0).to(tl.float64)
    total_sum = tl.sum(share * total, 0).to(tl.float64)
    log_total = tl.log(total_sum)
    exact = maximum.to(tl.float64) + log_total
    high = exact.to(tl.float32)
    tl.store(high_out + position, high)
    tl.store(low_out + position, (exact - high.to(tl.float64)).to(tl.float32))
    tl.store(entropy_out + position, (log_total - weighted_sum / total_sum).to(tl.float32))
    first = tl.min(tl.where(highest == maximum, where_highest, num_tokens), 0)
    tl.store(argmax_out + position, first.to(tl.int64))


@triton.jit
def _visit(  # noqa: C901  every condition is decided when it is compiled
    student,
    teacher,
    out,
    student_high,
    student_low,
    teacher_high,
    teacher_low,
    scale,
    centre,
    outside_high,
    outside_low,
    spread,
    terms_out,
    derivatives_out,
    student_stride,
    teacher_stride,
    out_stride,
    num_tokens,
    beta,
    entry_clip,
    factor,
    DIVERGENCE: tl.constexpr,
    CLIPS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    LANES: tl.constexpr,
):
    """One reading of a position's logits: value of a divergence, gradient, or both."""
    position = tl.program_id(0).to(tl.int64)
    student += position * student_stride
    lanes = tl.arange(0, LANES)
    student_high = tl.load(student_high + position)
    student_low = tl.load(student_low + position)
    if DIVERGENCE is not None:
        teacher += position * teacher_stride
        teacher_high = tl.load(teacher_high + position)
        teacher_low = tl.load(teacher_low + position)
        terms = tl.zeros([LANES], tl.float32)
        derivatives = tl.zeros([LANES], tl.float32)
    if out is not None:
        out += position * out_stride
        if scale is not None:
            scale = tl.load(scale + position) * factor
        if centre is not None:
            centre = tl.load(centre + position) * factor
        if spread is not None:
            spread = tl.load(spread + position) * factor
            outside_high = tl.load(outside_high + position)
            outside_low = tl.load(outside_low + position)
    for start in range(0, num_tokens, LANES):
        ids = start + lanes
        inside = ids < num_tokens
        logit = tl.load(student + ids, mask=inside, other=_LOG_ZERO)
        log_prob = (logit - student_high) - student_low
        prob = tl.exp(log_prob)
        gradient = tl.zeros([LANES], tl.float32)
        if DIVERGENCE is not None:
            teacher_logit = tl.load(teacher + ids, mask=inside, other=_LOG_ZERO)
            teacher_log_prob = (teacher_logit - teacher_high) - teacher_low
            term, derivative = DIVERGENCE(log_prob, teacher_log_prob, prob, tl.exp(teacher_log_prob), beta)
            if CLIPS:
                derivative = tl.where(term > entry_clip, 0.0, derivative)
                term = tl.minimum(term, entry_clip)
            terms += tl.where(inside, term, 0.0)
            derivatives += tl.where(inside, derivative, 0.0)
            if scale is not None:
                gradient += scale * derivative
        if out is not None:
            if centre is not None:
                gradient += centre * prob
            if spread is not None:
                gradient += spread * tl.exp((logit - outside_high) - outside_low)
            if ACCUMULATE:
                gradient += tl.load(out + ids, mask=inside, other=0.0)
            tl.store(out + ids, gradient.to(out.dtype.element_ty), mask=inside)
    if DIVERGENCE is not None:
        tl.store(terms_out + position, tl.sum(terms, 0))
        tl.store(derivatives_out + position, tl.sum(derivatives, 0))
