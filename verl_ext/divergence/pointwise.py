"""Divergences entry by entry: one function each, and the registry that names them.

Every divergence here is a sum over entries (vocabulary entries, or the events of a top-k support) of terms that depend
only on that entry. A function returns the terms and their derivatives by the student's log-probability of the same
entry; supports, tails, clips, gates and the softmax are applied around it (support.py, token_weight.py). Adding a
divergence is one such function and one line of a registry.

The divergences of two distributions are written with operators, `log`, `at_least` and `where` alone: kernels.py
compiles the same functions for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

K3_LIMIT = 20.0
"""Largest |log p_T - log p_S| that k3 sees, nats."""

LOG_ZERO = -1e30
"""Stands for the logarithm of 0, so that 0 * log 0 is 0 and nothing becomes NaN."""


log, where = torch.log, torch.where


def at_least(values: Tensor, low: float) -> Tensor:
    """Values no smaller than `low`."""
    return values.clamp(min=low)


@dataclass(frozen=True, kw_only=True)
class SampledLogProbs:
    """Log-probabilities [n, 1] of the sampled token, nats, each >= LOG_ZERO.

    `old`: of the policy that sampled, None where it is the current one; `advantage`: what a policy gradient follows.
    The teacher counts as 0 where there is none.
    """

    student: Tensor
    teacher: Tensor
    old: Tensor | None = None
    advantage: Tensor | None = None


Terms = tuple[Tensor, Tensor]
"""Terms [n, E], and d(term) / d(student log-probability) [n, E]. Both are the caller's to overwrite."""


class Parameters(Protocol):
    """What a divergence of the sampled token reads of its `spec.Term`."""

    @property
    def estimator(self) -> str | None:
        """Which estimator sampled_kl uses: k1, k2 or k3."""

    @property
    def clip_low(self) -> float | None:
        """The ratio of a policy gradient is at least 1 - clip_low."""

    @property
    def clip_high(self) -> float | None:
        """The ratio of a policy gradient is at most 1 + clip_high."""

    @property
    def dual_clip(self) -> float | None:
        """Of a policy gradient."""


def forward_kl(student: Tensor, teacher: Tensor, student_prob: Tensor, teacher_prob: Tensor, beta: float) -> Terms:
    """KL(teacher || student): p_T (log p_T - log p_S). Source: TRD, arXiv 2606.08432; GKD, arXiv 2306.13649."""
    return teacher_prob * (teacher - student), -teacher_prob


def reverse_kl(student: Tensor, teacher: Tensor, student_prob: Tensor, teacher_prob: Tensor, beta: float) -> Terms:
    """KL(student || teacher): p_S (log p_S - log p_T). Source: Fu et al., arXiv 2603.25562."""
    terms = student_prob * (student - teacher)
    return terms, terms + student_prob


def jsd(student: Tensor, teacher: Tensor, student_prob: Tensor, teacher_prob: Tensor, beta: float) -> Terms:
    """Generalised Jensen-Shannon divergence: beta KL(T || M) + (1 - beta) KL(S || M), M = (1 - beta) S + beta T.

    By definition, beta = 0 is the forward KL and beta = 1 the reverse KL (both formulas would give 0 there:
    `distribution_divergence` chooses). The derivatives of the mixture cancel, which leaves
    (1 - beta) p_S (log p_S - log M).

    Source: GKD, arXiv 2306.13649, Eq. 1, in the convention of TRL and OPSD.
    """
    log_mixture = at_least(log((1 - beta) * student_prob + beta * teacher_prob), LOG_ZERO)
    derivative = (1 - beta) * student_prob * (student - log_mixture)
    return beta * teacher_prob * (teacher - log_mixture) + derivative, derivative


def cross_entropy(log_probs: SampledLogProbs, _: Parameters) -> Terms:
    """Hard labels: -log p_S of the sampled token."""
    return -log_probs.student, -torch.ones_like(log_probs.student)


def sampled_kl(log_probs: SampledLogProbs, term: Parameters) -> Terms:
    """Estimators of KL(student || teacher) from one sampled token y, with a = log p_T(y) - log p_S(y).

        k1: policy gradient with the advantage A = log p_T(y) - log p_old(y), held fixed, and PPO's clip:
            max(-r A, -clip(r, 1 - clip_low, 1 + clip_high) A),  r = p_S(y) / p_old(y);  without a clip: -r A
        k2: a^2 / 2, differentiated directly
        k3: exp(a) - 1 - a, differentiated directly; a is held in [-20, 20] as in verl, without gradient outside: one
            token that the teacher thinks e^20 times likelier would be all of the step

    Source: k1 EOPD, arXiv 2603.07079, Eq. 7-8; all three http://joschu.net/blog/kl-approx.html.
    """
    if term.estimator == "k1":
        old = log_probs.student if log_probs.old is None else log_probs.old
        return _clipped_gradient(log_probs, term, advantage=log_probs.teacher - old)
    log_ratio = log_probs.teacher - log_probs.student
    if term.estimator == "k2":
        return log_ratio.square() / 2, -log_ratio
    bounded = log_ratio.clamp(-K3_LIMIT, K3_LIMIT)
    excess = bounded.expm1()
    return excess - bounded, torch.where(log_ratio == bounded, -excess, 0)


def policy_gradient(log_probs: SampledLogProbs, term: Parameters) -> Terms:
    """The k1 of `sampled_kl` with an advantage that the caller brings, for example from a task reward.

    Source: PPO's clipped objective as GRPO uses it, DeepSeekMath, arXiv 2402.03300, Eq. 3; dual clip: at a negative
    advantage no more than dual_clip * |A|, Ye et al., arXiv 1912.09729, Eq. 5.
    """
    assert log_probs.advantage is not None, "check_fit refuses a policy gradient without advantages"
    return _clipped_gradient(log_probs, term, advantage=log_probs.advantage)


def _clipped_gradient(log_probs: SampledLogProbs, term: Parameters, *, advantage: Tensor) -> Terms:
    old = log_probs.student if log_probs.old is None else log_probs.old
    ratio = (log_probs.student - old).exp()
    terms = -ratio * advantage
    if term.clip_low is None or term.clip_high is None:
        return terms, terms.clone()
    clipped = -ratio.clamp(1 - term.clip_low, 1 + term.clip_high) * advantage
    values, derivatives = torch.maximum(terms, clipped), torch.where(terms >= clipped, terms, 0)
    if term.dual_clip is None:
        return values, derivatives
    limit = torch.where(advantage < 0, -advantage * term.dual_clip, torch.inf)
    return torch.minimum(values, limit), torch.where(values <= limit, derivatives, 0)


DistributionDivergence = Callable[[Tensor, Tensor, Tensor, Tensor, float], Terms]
"""Of (log p_S, log p_T, p_S, p_T, beta), all [n, E] but beta; beta is 0 where a term has none."""

SampledDivergence = Callable[[SampledLogProbs, Parameters], Terms]

DISTRIBUTION_DIVERGENCES: dict[str, DistributionDivergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
}
"""Compare two distributions on a support."""

DERIVATIVE_SUMS: dict[str, float] = {"forward_kl": -1.0}
"""What the derivatives of all tokens add up to, where that is known without a look at them: it spares a GPU one reading
of the logits."""

SAMPLED_DIVERGENCES: dict[str, SampledDivergence] = {
    "cross_entropy": cross_entropy,
    "sampled_kl": sampled_kl,
    "policy_gradient": policy_gradient,
}
"""See only the sampled token (support `sampled`)."""

DIVERGENCES: dict[str, Callable[..., Terms]] = DISTRIBUTION_DIVERGENCES | SAMPLED_DIVERGENCES


def distribution_divergence(divergence: str, beta: float | None) -> str:
    """Name of the divergence that is computed: a jsd at the ends of beta is a KL."""
    if divergence == "jsd" and beta in (0.0, 1.0):
        return "forward_kl" if beta == 0.0 else "reverse_kl"
    return divergence
