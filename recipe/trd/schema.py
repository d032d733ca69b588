"""The `trd` node of the configuration as frozen dataclasses. Values live in `configs/`, types and rules here."""

from dataclasses import dataclass

from verl.base_config import BaseConfig


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}={value!r} is not one of {', '.join(allowed)}")


def _require(holds: bool, key: str, value: float, rule: str) -> None:
    if not holds:
        raise ValueError(f"{key}={value} must be {rule}")


def _at_least(key: str, value: float, least: float) -> None:
    _require(value >= least, key, value, f"at least {least}")


@dataclass(kw_only=True)
class TeacherConfig(BaseConfig):
    """Who teaches, what it sees, and how its log-probs are had."""

    weights: str
    """`external`: a model of its own, behind `distillation.teacher_models`; `none`: no teacher."""
    context: str
    """What the teacher sees when it scores: `refine` (x, y_o) or `vanilla` (x)."""
    scorer: str
    """`generation`: top-k that its server returns while it writes y_r; `prefill`: a second pass over context +
    response."""

    def __post_init__(self) -> None:
        _one_of("trd.teacher.weights", self.weights, ("external", "none"))
        _one_of("trd.teacher.context", self.context, ("refine", "vanilla"))
        _one_of("trd.teacher.scorer", self.scorer, ("generation", "prefill"))


@dataclass(kw_only=True)
class RewriteConfig(BaseConfig):
    """How y_r is asked for, and what happens to a sample whose rewrite is rejected."""

    template: str
    """Name of a file in recipe/trd/templates, or a path that ends in .jinja."""
    max_prompt_length: int
    """Longest refine context, tokens. The tail of y_o is cut to fit."""
    max_response_length: int
    """Most tokens of y_r, end of turn included. More than data.max_response_length only makes overlong rewrites."""
    temperature: float
    """Sampling temperature of y_r, in [0, 2]; 0 is greedy."""
    top_p: float
    """Nucleus of y_r, in (0, 1]."""
    top_k: int
    """Most likely tokens that y_r is drawn from; -1 is all."""
    fallback: str
    """A rejected rewrite is replaced by `y_o` under the vanilla context, or the sample is left out (`mask`)."""

    def __post_init__(self) -> None:
        _one_of("trd.rewrite.fallback", self.fallback, ("y_o", "mask"))
        _at_least("trd.rewrite.max_prompt_length", self.max_prompt_length, 1)
        _at_least("trd.rewrite.max_response_length", self.max_response_length, 1)
        # The server would refuse every request instead, and every sample would fall back.
        _require(0 <= self.temperature <= 2, "trd.rewrite.temperature", self.temperature, "in [0, 2]")
        _require(0 < self.top_p <= 1, "trd.rewrite.top_p", self.top_p, "in (0, 1]")
        _require(self.top_k == -1 or self.top_k >= 1, "trd.rewrite.top_k", self.top_k, "-1 (all tokens) or at least 1")


@dataclass(kw_only=True)
class ObjectiveConfig(BaseConfig):
    """What the student minimises. Both distributions are taken at temperature 1, whatever the rollout was drawn
    with."""

    divergence: str
    """`forward_kl`: KL(teacher || student); `sampled_kl`: verl's policy gradient on log pi_T - log pi_S; `none`: a task
    reward alone."""
    support: str
    """`teacher_topk`: the teacher's `top_k` likeliest tokens and a bucket for the rest; `sampled`: the sampled
    token."""
    top_k: int
    """Tokens of the teacher's distribution that are kept at every position."""

    def __post_init__(self) -> None:
        _one_of("trd.objective.divergence", self.divergence, ("forward_kl", "sampled_kl", "none"))
        _one_of("trd.objective.support", self.support, ("teacher_topk", "sampled"))
        _at_least("trd.objective.top_k", self.top_k, 1)


@dataclass(kw_only=True)
class TrdConfig(BaseConfig):
    """A method as a point on its axes, and what the recipe adds to a run."""

    method: str
    """Name of the method, for logs and the summary."""
    trajectory: str
    """What the student is trained on: `y_o`, its own rollout, or `y_r`, the teacher's rewrite of it."""
    teacher: TeacherConfig
    rewrite: RewriteConfig
    objective: ObjectiveConfig
    poll_interval_s: float
    """How often the trainer asks whether all samples of a step are there, s."""
    health_interval_s: float
    """How often the run asks its servers and workers whether they live, s."""

    def __post_init__(self) -> None:
        _one_of("trd.trajectory", self.trajectory, ("y_o", "y_r"))
        _require(self.poll_interval_s > 0, "trd.poll_interval_s", self.poll_interval_s, "more than 0")
        _require(self.health_interval_s > 0, "trd.health_interval_s", self.health_interval_s, "more than 0")
        wants_teacher = self.objective.divergence != "none"
        if wants_teacher != (self.teacher.weights != "none"):
            raise ValueError(
                f"trd.objective.divergence={self.objective.divergence!r} with "
                f"trd.teacher.weights={self.teacher.weights!r}: a divergence needs a teacher, and a teacher a "
                "divergence; choose the method by its name, method=..."
            )
        if self.is_upstream and self.trajectory != "y_o":
            raise ValueError(
                f"trd.trajectory=y_r with trd.objective.divergence={self.objective.divergence!r}: only forward_kl "
                "can be trained on rewritten trajectories; set trd.objective.divergence=forward_kl or "
                "trd.trajectory=y_o"
            )
        if not self.is_upstream and self.trajectory == "y_o":
            raise ValueError(
                "trd.trajectory=y_o with trd.objective.divergence=forward_kl is not built yet; set "
                "trd.trajectory=y_r, or method=opd for distillation on y_o"
            )
        if self.teacher.scorer == "generation" and self.trajectory == "y_r" and self.teacher.context != "refine":
            raise ValueError(
                "trd.teacher.scorer=generation returns log-probs under the context that y_r was written in, which is "
                f"refine, not {self.teacher.context}; set trd.teacher.context=refine or trd.teacher.scorer=prefill"
            )

    @property
    def is_upstream(self) -> bool:
        """True for methods that verl has itself; they run through verl's own agent loop, worker and losses."""
        return self.objective.divergence in ("sampled_kl", "none")
