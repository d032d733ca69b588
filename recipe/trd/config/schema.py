"""The node `trd` of the configuration: a method as a point on its axes, and which combinations of values are refused.

Values live in `configs/`. Student, teacher and rewrite are in roles.py, what the student minimises is in objective.py.
"""

from dataclasses import dataclass
from functools import cached_property

from verl.base_config import BaseConfig

from recipe.trd.config import teacher_plan
from recipe.trd.config.axes import Fallback, Scorer, Trajectory, Weights
from recipe.trd.config.faults import FaultsConfig
from recipe.trd.config.objective import ObjectiveConfig, TermConfig
from recipe.trd.config.roles import RewriteConfig, StudentConfig, TeacherConfig
from recipe.trd.config.teacher_plan import Holder, TeacherPlan
from recipe.trd.config.validate import member, require


@dataclass(kw_only=True)
class PreflightConfig(BaseConfig):
    """What is checked before a run starts."""

    skip: list[str]
    """Names of checks that are left out; `python -m recipe.trd.preflight` lists them."""


@dataclass(kw_only=True)
class TrdConfig(BaseConfig):
    """A method as a point on its axes, and what the recipe adds to a run."""

    method: str
    """Name of the method, for logs and the summary."""
    upstream: bool
    """Methods that verl has itself run through verl's own agent loop, worker and losses."""
    trajectory: Trajectory
    """What the student is trained on: `y_o`, its own rollout, or `y_r`, the teacher's rewrite of it."""
    reference_key: str
    """Where a row of the data has y*: a column, or `column.key` inside one."""
    student_thinking: bool | None
    """`enable_thinking` in the student's chat template; None leaves it to `data.apply_chat_template_kwargs`."""
    teacher_thinking: bool | None
    """The same in the vanilla and the privileged context; None is what the student's template is given."""
    rewrite_thinking: bool | None
    """The same in the refine context, in which y_r is written and scored; `false` by default."""
    student: StudentConfig
    teacher: TeacherConfig | None
    """null: a method without a teacher."""
    rewrite: RewriteConfig
    objective: ObjectiveConfig
    preflight: PreflightConfig
    faults: FaultsConfig
    shared_gpus: bool
    """The teacher's servers stand on the GPUs of the trainer and of the student's servers, not on GPUs of their own."""
    poll_interval_s: float
    """How often the trainer asks whether all samples of a step are there, s."""
    server_gap_warn: float | None
    """Mean |log p| difference between a server and what it should say from which on a step warns, nats; null: never."""
    server_gap_stop: float | None
    """The same for ending the run."""
    health_interval_s: float
    """How often the run asks its servers and workers whether they live, s."""

    def __post_init__(self) -> None:
        member(self, "trd", "trajectory", Trajectory)
        require(self.poll_interval_s > 0, "trd.poll_interval_s", self.poll_interval_s, "more than 0")
        for key in ("server_gap_warn", "server_gap_stop"):
            value = getattr(self, key)
            require(value is None or value > 0, f"trd.{key}", value, "more than 0, or null")
        require(self.health_interval_s > 0, "trd.health_interval_s", self.health_interval_s, "more than 0")
        self._check_teacher()
        self._check_thinking()
        if self.upstream:
            self._check_upstream()
        else:
            self._check_scorer()
            self._check_labels()

    def _check_teacher(self) -> None:
        if self.teacher is not None and not isinstance(self.teacher, TeacherConfig):
            raise ValueError(
                f"trd.teacher={dict(self.teacher)}: method {self.method} has no teacher; leave out what sets one, or "
                "choose another method=..."
            )
        if bool(self.objective.terms) != (self.teacher is not None):
            teacher = "null" if self.teacher is None else f"{self.teacher.weights.value!r} weights"
            raise ValueError(
                f"trd.objective.divergence={self.objective.divergence!r} with trd.teacher={teacher}: a divergence "
                "needs a teacher, and a teacher a divergence; choose the method by its name, method=..."
            )

    def _check_thinking(self) -> None:
        contexts = self.teacher_plan.in_use if self.teacher_plan else ()
        for role in ("student", "teacher", "rewrite"):
            key, value = f"trd.{role}_thinking", getattr(self, f"{role}_thinking")
            require(value in (None, True, False), key, value, "true, false or null")
            unused = role == "teacher" and key not in {context.thinking_key for context in contexts}
            if value is not None and unused:
                raise ValueError(
                    f"{key}={value}: no response of method {self.method} is written or scored under the context "
                    "privileged or vanilla; leave it null"
                )

    def _check_upstream(self) -> None:
        if self.objective.divergence not in ("sampled_kl", "none") or self.trajectory is not Trajectory.Y_O:
            raise ValueError(
                f"trd.upstream=True with divergence {self.objective.divergence} on {self.trajectory}: verl itself has "
                "sampled_kl and task rewards, on y_o; choose another method=..., or set trd.upstream=False"
            )
        objective = self.objective
        unknown_to_verl = {
            "plus.divergence": objective.plus.divergence != "none",
            "task_reward_coef": objective.task_reward_coef != 0,
            "coef": objective.coef != 1,
            "entropy_above": objective.entropy_above is not None,
            "positions": objective.positions != "all",
        }
        if unknown := [key for key, is_set in unknown_to_verl.items() if is_set]:
            raise ValueError(
                f"method {self.method} runs through verl's own losses, which do not know trd.objective.{unknown[0]}; "
                "leave it out, or choose another method=..."
            )

    def _check_scorer(self) -> None:
        if self.teacher is None:
            raise ValueError("trd.objective.divergence=none has nothing to train on here; choose method=grpo")
        scorer, context = self.teacher.scorer, self.teacher.context
        if scorer is Scorer.GENERATION and self.trajectory is Trajectory.Y_O:
            raise ValueError(
                "trd.teacher.scorer=generation returns log-probs of what the teacher writes, and y_o is the student's; "
                "set trd.teacher.scorer=prefill or engine"
            )
        self._check_weights(self.teacher.weights, scorer)
        if scorer is Scorer.GENERATION and context != "refine":
            raise ValueError(
                "trd.teacher.scorer=generation returns log-probs under the context that y_r was written in, which is "
                f"refine, not {context}; set trd.teacher.context=refine, or trd.teacher.scorer=prefill or engine"
            )
        for term in self.objective.terms:
            reason = _needs_more_than(scorer, term)
            if reason:
                raise ValueError(f"trd.teacher.scorer={scorer} cannot serve divergence {term.divergence}: {reason}")
        if scorer.is_server:
            wanted = max((term.top_k for term in self.objective.terms if term.support == "teacher_topk"), default=0)
            if wanted > self.objective.top_k:
                raise ValueError(
                    f"trd.objective.plus.top_k={wanted} exceeds trd.objective.top_k={self.objective.top_k}, which is "
                    "what the teacher's server sends; raise the latter"
                )

    def _check_weights(self, teacher: Weights, scorer: Scorer) -> None:
        plan = self.teacher_plan
        assert plan is not None, "weights are a teacher's"
        if scorer.is_server and (plan.scoring_server is None or not plan.scoring_server.sends_top_k):
            raise ValueError(
                f"trd.teacher.scorer={scorer} asks a server, and weights={teacher} are only in the training process; "
                "set trd.teacher.scorer=engine"
            )
        if scorer is Scorer.GENERATION and plan.author_weights is not teacher:
            raise ValueError(
                f"trd.teacher.scorer=generation returns log-probs of whoever writes y_r, which is "
                f"{plan.author_weights}, not {teacher}; set trd.teacher.scorer=engine or prefill"
            )
        if plan.author_weights is not None and plan.author is not Holder.STUDENT:
            _check_author(plan, teacher)

    def _check_labels(self) -> None:
        is_hard = any(term.divergence == "cross_entropy" for term in self.objective.terms)
        if is_hard and (self.trajectory is Trajectory.Y_O or self.rewrite.fallback is Fallback.Y_O):
            raise ValueError(
                "cross_entropy would teach the student its own y_o as right: set trd.trajectory=y_r and "
                "trd.rewrite.fallback=mask"
            )
        if self.objective.hidden.bridge is not None and self.objective.hidden_term is None:
            raise ValueError("trd.objective.hidden.bridge is set, but no term is hidden_mse; leave it out")

    @cached_property
    def teacher_plan(self) -> TeacherPlan | None:
        """Who holds the teacher's weights and what it is shown; None for a method without a teacher."""
        if self.teacher is None:
            return None
        return teacher_plan.make(
            teacher=self.teacher,
            rewrite=self.rewrite,
            student=self.student,
            trajectory=self.trajectory,
            upstream=self.upstream,
            teacher_thinking=self.teacher_thinking,
            rewrite_thinking=self.rewrite_thinking,
        )

    @property
    def has_server(self) -> bool:
        """Whether the teacher has a server of its own: to rewrite, or to score."""
        return self.teacher_plan is not None and self.teacher_plan.has_server

    @property
    def trains_both(self) -> bool:
        """Whether every rollout gives two samples: y_r for the divergence and y_o for the task reward."""
        return self.trajectory is Trajectory.Y_R and self.objective.task_reward_coef > 0


def _check_author(plan: TeacherPlan, teacher: Weights) -> None:
    """Whether a server has the weights that are to write y_r."""
    author = plan.author_weights
    if author is Weights.EMA and plan.author is None:
        raise ValueError(
            "trd.rewrite.weights=ema: no server has these weights, because the average of a student is a second "
            "adapter on its server, and this one trains all its weights or merges its adapters; set "
            "trd.rewrite.weights=live or frozen, or train adapters: actor_rollout_ref.model.lora_rank"
        )
    if author is Weights.EMA and teacher is not Weights.EMA:
        raise ValueError(
            f"trd.rewrite.weights={author} with trd.teacher.weights={teacher}: no server has these weights; set "
            "trd.rewrite.weights=live or frozen"
        )
    if Weights.EXTERNAL in (author, teacher) and author is not teacher:
        raise ValueError(
            f"trd.rewrite.weights={author} with trd.teacher.weights={teacher}: there is one server for a teacher; "
            "set both to the same, or trd.rewrite.weights=live"
        )


def _needs_more_than(scorer: Scorer, term: TermConfig) -> str | None:
    """Why this scorer cannot serve the term; None where it can."""
    if scorer is Scorer.ENGINE or term.divergence == "cross_entropy":
        return None
    if term.divergence == "hidden_mse":
        return "hidden states are only there in the training process; set trd.teacher.scorer=engine"
    if scorer is Scorer.NONE:
        return "it has no distribution of the teacher; set trd.teacher.scorer=generation, prefill or engine"
    if term.support != "teacher_topk":
        return (
            f"support {term.support} needs more than the teacher's top-k; set trd.teacher.scorer=engine or "
            "support=teacher_topk"
        )
    if term.entropy_above is not None:
        return "the entropy gate needs the teacher's whole vocabulary; set trd.teacher.scorer=engine"
    return None
