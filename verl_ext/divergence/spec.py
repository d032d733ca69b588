"""What is computed: the terms of an objective, and what the caller brings for it. Data and checks, no formula."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from verl_ext.divergence.pointwise import DISTRIBUTION_DIVERGENCES, SAMPLED_DIVERGENCES

TOP_K_SUPPORTS = ("teacher_topk", "student_topk")
TAILS = ("bucket", "renormalize", "renormalize_teacher", "drop")
ESTIMATORS = ("k1", "k2", "k3")


@dataclass(frozen=True, kw_only=True)
class Term:
    """One divergence on one support with its token weighting; an objective is a sum of them.

    Per position it adds `coef * gate * min(sum over the support of its entries, position_clip)`.
    """

    divergence: str
    """A name of pointwise.py."""
    support: str
    """`full`, `teacher_topk`, `student_topk`; `sampled` for divergences of the sampled token."""
    tail: str | None = None
    """What becomes of the rest of a top-k support: `bucket` (one event holds it), `renormalize` (both sides to 1),
    `renormalize_teacher` (the student keeps its probabilities under the whole vocabulary), `drop` (it counts
    nothing)."""
    top_k: int | None = None
    """Size of a top-k support; None for all that a `TopK` teacher gives."""
    coef: float = 1.0
    beta: float | None = None
    """For `jsd` only: 0 is the forward KL, 1 the reverse KL."""
    estimator: str | None = None
    """For `sampled_kl` only: k1 (policy gradient), k2, k3."""
    clip_low: float | None = None
    """With clip_high, PPO's clip of k1: the ratio stays within [1 - clip_low, 1 + clip_high]."""
    clip_high: float | None = None
    dual_clip: float | None = None
    """Of a policy_gradient with a clip: at a negative advantage A the value stays below dual_clip * |A|."""
    entry_clip: float | None = None
    """Upper limit of every vocabulary entry's term (OPSD, arXiv 2601.18734). Values can become negative."""
    position_clip: float | None = None
    """Upper limit of a position's sum; positions above it get no gradient (TRD's baseline `opd_clip`)."""
    entropy_above: float | None = None
    """The term counts only where the teacher's entropy over the whole vocabulary, nats, exceeds this (EOPD)."""

    def __post_init__(self) -> None:
        sampled = self.divergence in SAMPLED_DIVERGENCES
        top_k = self.support in TOP_K_SUPPORTS
        _require(
            sampled or self.divergence in DISTRIBUTION_DIVERGENCES,
            f"divergence {self.divergence!r} is none of {[*DISTRIBUTION_DIVERGENCES, *SAMPLED_DIVERGENCES]}",
        )
        allowed = ("sampled",) if sampled else ("full", *TOP_K_SUPPORTS)
        _require(self.support in allowed, f"{self.divergence} has support {self.support!r}; it needs one of {allowed}")
        _require(
            self.tail in TAILS if top_k else self.tail is None,
            f"support {self.support} has tail {self.tail!r}; a top-k support needs one of {TAILS}, others none",
        )
        _require(top_k or self.top_k is None, f"support {self.support} takes no top_k")
        _require(self.top_k is None or self.top_k > 0, f"top_k is {self.top_k}; it must be positive")
        self._check_parameters()

    def _check_parameters(self) -> None:
        _require(
            (self.divergence == "jsd") == (self.beta is not None), "jsd needs beta (0 forward, 1 reverse), others none"
        )
        _require(self.beta is None or 0 <= self.beta <= 1, f"beta is {self.beta}; it must lie in [0, 1]")
        _require(
            self.estimator in ESTIMATORS if self.divergence == "sampled_kl" else self.estimator is None,
            f"sampled_kl needs an estimator of {ESTIMATORS}, others none; got {self.estimator!r}",
        )
        _require((self.clip_low is None) == (self.clip_high is None), "clip_low and clip_high come together")
        follows_gradient = self.estimator == "k1" or self.divergence == "policy_gradient"
        _require(
            self.clip_low is None or follows_gradient,
            "clip_low and clip_high belong to the estimator k1 and to policy_gradient",
        )
        _require(
            self.dual_clip is None or (self.divergence == "policy_gradient" and self.clip_low is not None),
            "dual_clip belongs to a policy_gradient with clip_low and clip_high",
        )
        _require(self.dual_clip is None or self.dual_clip > 1, f"dual_clip is {self.dual_clip}; it must exceed 1")
        _require(
            not follows_gradient or (self.entry_clip is None and self.position_clip is None),
            "a policy gradient has no clip of its value; clip_low and clip_high clip its ratio",
        )


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Terms that are added up, each divergence at most once.

    `overlap_top_k` > 0 also reports top-k mass and overlap for a teacher known over the whole vocabulary; a `TopK`
    teacher or a term on a top-k support says its own k.
    """

    terms: tuple[Term, ...]
    overlap_top_k: int = 0

    def __post_init__(self) -> None:
        names = [term.divergence for term in self.terms]
        _require(len(names) > 0, "an objective needs at least one term")
        _require(len(names) == len(set(names)), f"each divergence may occur once in an objective, got {names}")


@dataclass(frozen=True, kw_only=True)
class Head:
    """A model's last hidden states and its output head: softmax(cap(hidden @ weight^T + bias) / temperature).

    hidden [N, d]; weight [V, d], the embedding itself where both are tied; bias [V]; soft_cap as in Gemma 2:
    cap(x) = soft_cap * tanh(x / soft_cap). `swapped`: two ids that trade places in a teacher's distribution, for models
    that end a turn with different tokens of one vocabulary; a student has none.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    soft_cap: float | None = None
    temperature: float = 1.0
    swapped: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class TopK:
    """A teacher known at its K most probable tokens.

    ids [N, K] integer, distinct at each position; log_probs [N, K] under the teacher's full softmax, -inf for
    probability 0.
    """

    ids: Tensor
    log_probs: Tensor


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What a position counts, and what was sampled there.

    weights [N]: its factor in the loss, normally mask * position weight / global token count; positions of weight 0
    are not computed at all. ids [N]: sampled token (label). old_log_probs [N]: of the policy that sampled it, for the
    ratio of k1 and policy_gradient; None takes the student as it is. advantages [N]: of a policy_gradient.
    """

    weights: Tensor
    ids: Tensor | None = None
    old_log_probs: Tensor | None = None
    advantages: Tensor | None = None


NO_TEACHER = ("cross_entropy", "policy_gradient")
"""Divergences that ask the data, not a teacher."""


def check_fit(*, objective: Objective, teacher: Head | TopK | None, tokens: Tokens) -> None:
    """Refuse an objective that this teacher cannot serve, with the reason.

    Raises:
        ValueError: what is missing, and what brings it.
    """
    for term in objective.terms:
        _require(
            teacher is not None or term.divergence in NO_TEACHER,
            f"{term.divergence} needs a teacher: hidden states with a head, or top-k",
        )
        _require(
            term.support != "sampled" or tokens.ids is not None, f"{term.divergence} needs the sampled ids in `tokens`"
        )
        _require(
            term.divergence != "policy_gradient" or tokens.advantages is not None,
            "policy_gradient needs advantages in `tokens`",
        )
        if isinstance(teacher, TopK):
            _check_top_k(term, teacher)
        else:
            _require(
                term.support not in TOP_K_SUPPORTS or term.top_k is not None, f"support {term.support} needs top_k"
            )
            _require(term.entropy_above is None or teacher is not None, "an entropy gate needs a teacher")


def _check_top_k(term: Term, teacher: TopK) -> None:
    _require(
        term.support in ("teacher_topk", "sampled"),
        f"support {term.support} needs the teacher's whole vocabulary; a top-k teacher serves teacher_topk",
    )
    _require(
        term.entropy_above is None,
        "an entropy gate needs the teacher's entropy over the whole vocabulary; give a teacher head",
    )
    _require(
        term.divergence != "sampled_kl",
        "sampled_kl needs the teacher's log-probability of the sampled token; give a teacher head",
    )
    given = teacher.ids.shape[-1]
    _require(term.top_k is None or term.top_k <= given, f"top_k is {term.top_k}, the teacher gives {given}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
