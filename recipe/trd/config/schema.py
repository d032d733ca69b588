"""The `trd` node of the configuration as frozen dataclasses. Values live in `configs/`, types and rules here.

What the student minimises is in terms.py.
"""

from dataclasses import dataclass

from verl.base_config import BaseConfig

from recipe.trd.config.objective import HiddenConfig, ObjectiveConfig, TermConfig
from recipe.trd.config.validate import at_least, one_of, require

__all__ = [
    "EngineTeacherConfig",
    "HiddenConfig",
    "ObjectiveConfig",
    "RewriteConfig",
    "StudentConfig",
    "TeacherConfig",
    "TermConfig",
    "TrdConfig",
]


@dataclass(kw_only=True)
class StudentConfig(BaseConfig):
    """What verl's keys say of the student, where it decides who answers for whom."""

    lora_rank: int
    """Rank of its adapters; 0: all its weights are trained."""
    lora_merge: bool
    """Whether its server gets base and adapters as one."""

    @property
    def serves_base(self) -> bool:
        """Whether its server can answer without the adapters, or with others."""
        return self.lora_rank > 0 and not self.lora_merge


@dataclass(kw_only=True)
class EngineTeacherConfig(BaseConfig):
    """The teacher beside the student in the training process (`trd.teacher.scorer=engine`)."""

    path: str | None
    """Model that scores; by default the one that also rewrites."""
    dtype: str
    """Of its weights and its forward pass: `bf16`, `fp16` or `fp32`."""
    offload: bool
    """Its weights stay in host memory but during an update."""

    def __post_init__(self) -> None:
        one_of("trd.teacher.engine.dtype", self.dtype, ("bf16", "fp16", "fp32"))


@dataclass(kw_only=True)
class TeacherConfig(BaseConfig):
    """Who teaches, what it sees, and how its distribution is had."""

    weights: str
    """`external`: a model of its own, behind `distillation.teacher_models`; `frozen`: the student as it was at step 0;
    `ema`: the moving average of its weights; `live`: the student as it is; `none`: no teacher."""
    ema_decay: float
    """Of `ema`, for every optimiser step, in [0, 1)."""
    context: str
    """What the teacher sees when it scores: `vanilla` (x), `privileged` (x, y*) or `refine` (x, y_o, and y* with
    `trd.rewrite.with_reference`)."""
    template: str
    """Of the privileged context: a file in recipe/trd/rewrite/templates, or a path that ends in .jinja."""
    max_prompt_length: int
    """Longest privileged context, tokens. The tail of y* is cut to fit."""
    scorer: str
    """`generation`: top-k that its server returns while it writes y_r; `prefill`: a second pass over context +
    response on the server; `engine`: the teacher as an FSDP model beside the student: whole vocabulary and hidden
    states; `none`: it only rewrites."""
    eos_remap: bool
    """The teacher's end-of-turn token and the student's trade places in what the teacher says: for base students."""
    engine: EngineTeacherConfig

    def __post_init__(self) -> None:
        one_of("trd.teacher.weights", self.weights, ("external", "frozen", "ema", "live", "none"))
        one_of("trd.teacher.context", self.context, ("refine", "vanilla", "privileged"))
        require(0 <= self.ema_decay < 1, "trd.teacher.ema_decay", self.ema_decay, "in [0, 1)")
        at_least("trd.teacher.max_prompt_length", self.max_prompt_length, 1)
        one_of("trd.teacher.scorer", self.scorer, ("generation", "prefill", "engine", "none"))


@dataclass(kw_only=True)
class RewriteConfig(BaseConfig):
    """How y_r is asked for, and what happens to a sample whose rewrite is rejected."""

    weights: str
    """Whose weights write y_r: `external` on the teacher's server; `live` on the student's; `frozen` on the student's
    without its adapters (LoRA), else on a server of its own; `ema` on the student's with averaged adapters."""
    template: str
    """Name of a file in recipe/trd/rewrite/templates, or a path that ends in .jinja."""
    with_reference: bool
    """Whether the refine context shows y*, the reference solution."""
    max_prompt_length: int
    """Longest refine context, tokens. The tail of y_o is cut to fit, then that of y*."""
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
        one_of("trd.rewrite.weights", self.weights, ("external", "frozen", "ema", "live", "none"))
        one_of("trd.rewrite.fallback", self.fallback, ("y_o", "mask"))
        at_least("trd.rewrite.max_prompt_length", self.max_prompt_length, 1)
        at_least("trd.rewrite.max_response_length", self.max_response_length, 1)
        # The server would refuse every request instead, and every sample would fall back.
        require(0 <= self.temperature <= 2, "trd.rewrite.temperature", self.temperature, "in [0, 2]")
        require(0 < self.top_p <= 1, "trd.rewrite.top_p", self.top_p, "in (0, 1]")
        require(self.top_k == -1 or self.top_k >= 1, "trd.rewrite.top_k", self.top_k, "-1 (all tokens) or at least 1")


@dataclass(kw_only=True)
class TrdConfig(BaseConfig):
    """A method as a point on its axes, and what the recipe adds to a run."""

    method: str
    """Name of the method, for logs and the summary."""
    upstream: bool
    """Methods that verl has itself run through verl's own agent loop, worker and losses."""
    trajectory: str
    """What the student is trained on: `y_o`, its own rollout, or `y_r`, the teacher's rewrite of it."""
    reference_key: str
    """Where a row of the data has y*: a column, or `column.key` inside one."""
    student_thinking: bool | None
    """`enable_thinking` in the student's chat template; None leaves it to `data.apply_chat_template_kwargs`."""
    teacher_thinking: bool | None
    """The same in the vanilla and the privileged context; None is what the student's template is given."""
    rewrite_thinking: bool | None
    """The same in the refine context, in which y_r is written and scored."""
    student: StudentConfig
    teacher: TeacherConfig
    rewrite: RewriteConfig
    objective: ObjectiveConfig
    poll_interval_s: float
    """How often the trainer asks whether all samples of a step are there, s."""
    health_interval_s: float
    """How often the run asks its servers and workers whether they live, s."""

    def __post_init__(self) -> None:
        one_of("trd.trajectory", self.trajectory, ("y_o", "y_r"))
        require(self.poll_interval_s > 0, "trd.poll_interval_s", self.poll_interval_s, "more than 0")
        require(self.health_interval_s > 0, "trd.health_interval_s", self.health_interval_s, "more than 0")
        self._check_teacher()
        self._check_thinking()
        if self.upstream:
            self._check_upstream()
        else:
            self._check_scorer()
            self._check_labels()

    def _check_teacher(self) -> None:
        if bool(self.objective.terms) != (self.teacher.weights != "none"):
            raise ValueError(
                f"trd.objective.divergence={self.objective.divergence!r} with "
                f"trd.teacher.weights={self.teacher.weights!r}: a divergence needs a teacher, and a teacher a "
                "divergence; choose the method by its name, method=..."
            )

    def _check_thinking(self) -> None:
        for role in ("student", "teacher", "rewrite"):
            key, value = f"trd.{role}_thinking", getattr(self, f"{role}_thinking")
            require(value in (None, True, False), key, value, "true, false or null")
            kinds = {"teacher": {"vanilla", "privileged"}, "rewrite": {"refine"}}.get(role, set())
            if value is not None and kinds and not kinds & self.contexts:
                raise ValueError(
                    f"{key}={value}: no response of method {self.method} is written or scored under the context "
                    f"{' or '.join(sorted(kinds))}; leave it null"
                )

    def _check_upstream(self) -> None:
        if self.objective.divergence not in ("sampled_kl", "none") or self.trajectory != "y_o":
            raise ValueError(
                f"trd.upstream=True with divergence {self.objective.divergence} on {self.trajectory}: verl itself has "
                "sampled_kl and task rewards, on y_o; choose another method=..., or set trd.upstream=False"
            )
        objective = self.objective
        ours = {
            "plus.divergence": objective.plus.divergence != "none",
            "task_reward_coef": objective.task_reward_coef != 0,
            "coef": objective.coef != 1,
            "entropy_above": objective.entropy_above is not None,
            "positions": objective.positions != "all",
        }
        if unknown := [key for key, is_set in ours.items() if is_set]:
            raise ValueError(
                f"method {self.method} runs through verl's own losses, which do not know trd.objective.{unknown[0]}; "
                "leave it out, or choose another method=..."
            )

    def _check_scorer(self) -> None:
        scorer, context = self.teacher.scorer, self.teacher.context
        if not self.objective.terms:
            raise ValueError("trd.objective.divergence=none has nothing to train on here; choose method=grpo")
        if scorer == "generation" and self.trajectory == "y_o":
            raise ValueError(
                "trd.teacher.scorer=generation returns log-probs of what the teacher writes, and y_o is the student's; "
                "set trd.teacher.scorer=prefill or engine"
            )
        self._check_weights()
        if scorer == "generation" and context != "refine":
            raise ValueError(
                "trd.teacher.scorer=generation returns log-probs under the context that y_r was written in, which is "
                f"refine, not {context}; set trd.teacher.context=refine, or trd.teacher.scorer=prefill or engine"
            )
        for term in self.objective.terms:
            reason = _needs_more_than(scorer, term)
            if reason:
                raise ValueError(f"trd.teacher.scorer={scorer} cannot serve divergence {term.divergence}: {reason}")
        if scorer in ("generation", "prefill"):
            wanted = max((term.top_k for term in self.objective.terms if term.support == "teacher_topk"), default=0)
            if wanted > self.objective.top_k:
                raise ValueError(
                    f"trd.objective.plus.top_k={wanted} exceeds trd.objective.top_k={self.objective.top_k}, which is "
                    "what the teacher's server sends; raise the latter"
                )

    def _check_weights(self) -> None:
        scorer, teacher, author = self.teacher.scorer, self.teacher.weights, self.rewrite.weights
        on_server = scorer in ("generation", "prefill")
        if on_server and (teacher == "live" or (teacher == "ema" and not self.student.serves_base)):
            raise ValueError(
                f"trd.teacher.scorer={scorer} asks a server, and weights={teacher} are in the training process alone; "
                "set trd.teacher.scorer=engine"
            )
        if scorer == "generation" and author != teacher:
            raise ValueError(
                f"trd.teacher.scorer=generation returns log-probs of whoever writes y_r, which is {author}, not "
                f"{teacher}; set trd.teacher.scorer=engine or prefill"
            )
        if self.trajectory == "y_r" and author != "live":
            self._check_author(author)

    def _check_author(self, author: str) -> None:
        teacher = self.teacher.weights
        if author == "ema" and not self.student.serves_base:
            raise ValueError(
                "trd.rewrite.weights=ema: no server has these weights, because the average of a student is a second "
                "adapter on its server, and this one trains all its weights or merges its adapters; set "
                "trd.rewrite.weights=live or frozen, or train adapters: actor_rollout_ref.model.lora_rank"
            )
        if author == "none" or (author == "ema" and teacher != "ema"):
            raise ValueError(
                f"trd.rewrite.weights={author} with trd.teacher.weights={teacher}: no server has these weights; set "
                "trd.rewrite.weights=live or frozen"
            )
        if "external" in (author, teacher) and author != teacher:
            raise ValueError(
                f"trd.rewrite.weights={author} with trd.teacher.weights={teacher}: there is one server for a teacher; "
                "set both to the same, or trd.rewrite.weights=live"
            )

    def _check_labels(self) -> None:
        is_hard = any(term.divergence == "cross_entropy" for term in self.objective.terms)
        if is_hard and (self.trajectory == "y_o" or self.rewrite.fallback == "y_o"):
            raise ValueError(
                "cross_entropy would teach the student its own y_o as right: set trd.trajectory=y_r and "
                "trd.rewrite.fallback=mask"
            )
        if self.objective.hidden.bridge is not None and self.objective.hidden_term is None:
            raise ValueError("trd.objective.hidden.bridge is set, but no term is hidden_mse; leave it out")

    @property
    def has_server(self) -> bool:
        """Whether the teacher has a server of its own: to rewrite, or to score."""
        return self.teacher.weights != "none" and any(not self.on_student(weights) for weights in self._asked())

    @property
    def asks_student(self) -> bool:
        """Whether the student's own server rewrites or scores."""
        return any(self.on_student(weights) for weights in self._asked())

    @property
    def asks_average(self) -> bool:
        """Whether the student's own server answers with the average of its adapters."""
        return "ema" in self._asked()

    def on_student(self, weights: str) -> bool:
        """Whether the student's own server has these weights: as it is, without its adapters, or with their average."""
        is_there = weights == "live" or (weights in ("frozen", "ema") and self.student.serves_base)
        return is_there and not self.upstream

    def _asked(self) -> list[str]:
        """Weights that some server has to answer with: to rewrite, and to score."""
        rewrites = self.trajectory == "y_r"
        scores = self.upstream or self.teacher.scorer in ("generation", "prefill")
        return [self.rewrite.weights] * rewrites + [self.teacher.weights] * scores

    @property
    def is_self(self) -> bool:
        """Whether the teacher is the student, at some point of its training."""
        return self.teacher.weights in ("frozen", "ema", "live")

    @property
    def needs_reference(self) -> bool:
        """Whether some context shows y*."""
        sees_refine = self.trajectory == "y_r" or self.teacher.context == "refine"
        return self.teacher.context == "privileged" or (sees_refine and self.rewrite.with_reference)

    @property
    def contexts(self) -> set[str]:
        """The teacher's contexts that a response is written or scored under; of verl's own methods none is ours."""
        if self.upstream or self.teacher.weights == "none":
            return set()
        scored = set() if self.teacher.scorer == "none" else {self.teacher.context}
        if self.trajectory == "y_o":
            return scored
        if scored == {"refine"} and self.rewrite.fallback == "y_o":
            # What a y_o is scored under that stands in for a rejected rewrite.
            scored.add("privileged" if self.rewrite.with_reference else "vanilla")
        return {"refine", *scored}

    @property
    def trains_both(self) -> bool:
        """Whether every rollout gives two rows: y_r for the divergence and y_o for the task reward."""
        return self.trajectory == "y_r" and self.objective.task_reward_coef > 0


def _needs_more_than(scorer: str, term: TermConfig) -> str | None:
    """Why this scorer cannot serve the term; None where it can."""
    if scorer == "engine" or term.divergence == "cross_entropy":
        return None
    if term.divergence == "hidden_mse":
        return "hidden states are only there in the training process; set trd.teacher.scorer=engine"
    if scorer == "none":
        return "it has no distribution of the teacher; set trd.teacher.scorer=generation, prefill or engine"
    if term.support != "teacher_topk":
        return (
            f"support {term.support} needs more than the teacher's top-k; set trd.teacher.scorer=engine or "
            "support=teacher_topk"
        )
    if term.entropy_above is not None:
        return "the entropy gate needs the teacher's whole vocabulary; set trd.teacher.scorer=engine"
    return None
