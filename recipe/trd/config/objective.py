"""The node `trd.objective` as frozen dataclasses: terms, hidden states, task reward."""

from dataclasses import dataclass
from typing import ClassVar

from verl.base_config import BaseConfig

from recipe.trd.config.axes import Layers, Positions
from recipe.trd.config.validate import at_least, member, one_of, require
from verl_ext.divergence import DIVERGENCES, TOP_K_SUPPORTS, Objective, Term

NOT_ON_OUTPUTS = ("hidden_mse", "none")
"""Values of `divergence` beside those of `verl_ext.divergence`."""


@dataclass(kw_only=True)
class TermConfig(BaseConfig):
    """One divergence on one support with its token weighting. Distributions are taken at temperature 1."""

    NODE: ClassVar[str] = "trd.objective.plus"
    """Where it stands, for messages."""

    divergence: str
    """`forward_kl` KL(T || S), `reverse_kl` KL(S || T), `jsd`, `sampled_kl`, `cross_entropy` (hard labels),
    `hidden_mse` (hidden states), `none`."""
    support: str | None
    """Of forward_kl, reverse_kl and jsd: `full`, `teacher_topk` or `student_topk`; of sampled_kl and cross_entropy:
    `sampled`; else null."""
    tail: str
    """Of a top-k support: `bucket`, `renormalize`, `renormalize_teacher` or `drop`."""
    top_k: int
    """Of a top-k support, and of what a teacher's server sends."""
    coef: float
    """Factor of this term in the loss."""
    beta: float
    """Of jsd: 0 is the forward KL, 1 the reverse KL."""
    estimator: str
    """Of sampled_kl: `k1` (policy gradient), `k2` or `k3`."""
    clip_low: float | None
    """Of k1: the ratio to the policy that sampled stays above 1 - clip_low."""
    clip_high: float | None
    """Of k1: the ratio stays below 1 + clip_high."""
    entry_clip: float | None
    """Upper limit of every vocabulary entry's term, nats (OPSD)."""
    position_clip: float | None
    """Upper limit of a position's divergence, nats; positions above it get no gradient."""
    entropy_above: float | None
    """The term counts where the teacher's entropy over the whole vocabulary exceeds this, nats (EOPD)."""

    def __post_init__(self) -> None:
        on_outputs = [name for name in DIVERGENCES if name != "policy_gradient"]
        one_of(f"{self.NODE}.divergence", self.divergence, (*on_outputs, *NOT_ON_OUTPUTS))
        at_least(f"{self.NODE}.top_k", self.top_k, 1)
        require(self.coef > 0, f"{self.NODE}.coef", self.coef, "more than 0; divergence none leaves a term out")
        if self.divergence in on_outputs:
            self.term()
            return
        for key in ("support", "entry_clip", "position_clip", "entropy_above"):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"{self.NODE}.{key}={getattr(self, key)} with divergence {self.divergence}, which has none; "
                    "set null"
                )

    def term(self) -> Term:
        """What `verl_ext.divergence` computes; keys that do not belong to this divergence or support are left out.

        Raises:
            ValueError: keys that contradict each other.
        """
        top_k, k1 = self.support in TOP_K_SUPPORTS, self.divergence == "sampled_kl" and self.estimator == "k1"
        try:
            return Term(
                divergence=self.divergence,
                support=self.support or "",
                tail=self.tail if top_k else None,
                top_k=self.top_k if top_k else None,
                coef=self.coef,
                beta=self.beta if self.divergence == "jsd" else None,
                estimator=self.estimator if self.divergence == "sampled_kl" else None,
                clip_low=self.clip_low if k1 else None,
                clip_high=self.clip_high if k1 else None,
                entry_clip=self.entry_clip,
                position_clip=self.position_clip,
                entropy_above=self.entropy_above,
            )
        except ValueError as error:
            raise ValueError(f"{self.NODE}: {error}") from error


@dataclass(kw_only=True)
class HiddenConfig(BaseConfig):
    """What `hidden_mse` compares."""

    layers: Layers
    """`all`, or `last`: only the output of the final norm."""
    normalize: bool
    """Compare directions (vectors of length 1) instead of raw states."""
    positions: Positions
    """`all`, or the `first` or `last` `num_positions` tokens of every response."""
    num_positions: int | None
    bridge: str | None
    """Maps between models of other size, a folder made by `python -m recipe.trd.fit_bridge`; null compares directly."""

    def __post_init__(self) -> None:
        member(self, "trd.objective.hidden", "layers", Layers)
        if self.bridge == "":
            raise ValueError(
                "trd.objective.hidden.bridge is not set: give the folder of maps that `python -m "
                "recipe.trd.fit_bridge` made for this pair of models"
            )
        _check_positions(self, "trd.objective.hidden")


def _check_positions(config: "HiddenConfig | ObjectiveConfig", node: str) -> None:
    member(config, node, "positions", Positions)
    num = config.num_positions
    if (config.positions is Positions.ALL) != (num is None) or (num is not None and num < 1):
        raise ValueError(
            f"{node}.positions={config.positions} with num_positions={num}: first and last need a positive number, "
            "all needs null"
        )


@dataclass(kw_only=True)
class ObjectiveConfig(TermConfig):
    """What the student minimises: the first term, a second one beside it, and a task reward."""

    NODE: ClassVar[str] = "trd.objective"

    positions: Positions
    """Tokens of a response that count: `all`, or the `first` or `last` `num_positions`. hidden_mse has its own."""
    num_positions: int | None
    plus: TermConfig
    """A second term that is added; divergence `none` leaves it out."""
    hidden: HiddenConfig
    task_reward_coef: float
    """Factor of the policy loss of the task reward on y_o; 0 leaves it out."""
    task_clip_low: float
    """The ratio of that policy loss stays above 1 - task_clip_low."""
    task_clip_high: float
    """The ratio stays below 1 + task_clip_high."""
    task_clip_dual: float
    """At a negative advantage A the loss stays below task_clip_dual * |A| (dual clip)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positions(self, "trd.objective")
        at_least("trd.objective.task_reward_coef", self.task_reward_coef, 0)
        if self.divergence == "none" and self.plus.divergence != "none":
            raise ValueError(
                f"trd.objective.plus.divergence={self.plus.divergence} beside no first term; set it as "
                "trd.objective.divergence"
            )
        names = [term.divergence for term in self.terms]
        if len(set(names)) != len(names):
            raise ValueError(f"trd.objective has {names[0]} twice; a term of each kind at most")

    @property
    def terms(self) -> tuple[TermConfig, ...]:
        """The terms that count."""
        return tuple(term for term in (self, self.plus) if term.divergence != "none")

    @property
    def hidden_term(self) -> TermConfig | None:
        """The term on hidden states, if there is one."""
        return next((term for term in self.terms if term.divergence == "hidden_mse"), None)

    def distributions(self) -> Objective | None:
        """The terms on output distributions, None without one."""
        terms = tuple(term.term() for term in self.terms if term.divergence != "hidden_mse")
        return Objective(terms=terms, overlap_top_k=self.top_k) if terms else None

    def policy(self) -> Objective | None:
        """The policy loss of the task reward, None without one."""
        if self.task_reward_coef == 0:
            return None
        term = Term(
            divergence="policy_gradient",
            support="sampled",
            coef=self.task_reward_coef,
            clip_low=self.task_clip_low,
            clip_high=self.task_clip_high,
            dual_clip=self.task_clip_dual,
        )
        return Objective(terms=(term,))
