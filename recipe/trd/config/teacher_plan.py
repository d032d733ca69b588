"""Who holds the teacher's weights, which server writes y_r, what the teacher is shown: derived here and nowhere else.

Worker, agent loop, preflight and memory plan read the one `TeacherPlan` of a run (`TrdConfig.teacher_plan`).
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, partial

from recipe.trd.config.axes import Fallback, Scorer, Trajectory, Weights
from recipe.trd.config.contexts import CONTEXTS, Node
from recipe.trd.config.roles import RewriteConfig, StudentConfig, TeacherConfig


class Holder(StrEnum):
    """Which module of the training process, or which server, has the weights that are asked for."""

    OWN = "own"
    """One of the teacher's own."""
    STUDENT = "student"
    """The student's, as it is."""
    BASE = "base"
    """The student's, without its adapters."""
    AVERAGE = "average"
    """The student's, with averaged weights."""

    @property
    def sends_top_k(self) -> bool:
        """Whether such a server can return top-k log-probs: the student's current weights only generate."""
        return self is not Holder.STUDENT


@dataclass(frozen=True)
class TeacherContext:
    """One context of a run: what the teacher is shown before a response, and how long that may become."""

    name: str
    """A key of `contexts.CONTEXTS`."""
    shows_y_o: bool
    shows_reference: bool
    template: str | None
    """None: the student's own conversation."""
    max_prompt_length: int
    """Tokens."""
    max_length: int
    """Prompt and response together, tokens."""
    thinking_key: str
    """The key that switches thoughts on or off in it."""
    thinking: bool | None
    """Value of that key."""


@dataclass(frozen=True)
class TeacherPlan:
    """The teacher of one run."""

    weights: Weights
    module: Holder | None
    """Who has the weights in the training process; None where no module is asked for them."""
    scoring_server: Holder | None
    """Which server scores; None where none is asked, or none has these weights."""
    author_weights: Weights | None
    """Whose weights write y_r; None where nothing is rewritten."""
    author: Holder | None
    """Which server writes y_r; None where nothing is rewritten, or none has these weights."""
    asks_server: bool
    """Whether scoring is asked of a server."""
    vanilla: TeacherContext
    scored: TeacherContext
    """What a response is scored under."""
    refine: TeacherContext | None
    """What y_r is written under; None where nothing is rewritten."""
    fallback: TeacherContext
    """What a y_o that stands in for a rejected rewrite is scored under: nothing of the failed rewrite is in it."""
    in_use: tuple[TeacherContext, ...]
    """Contexts that a response is written or scored under by this recipe; empty for verl's own methods."""
    possible: tuple[TeacherContext, ...]
    """Those, and others that the teacher's limits must have room for."""

    @property
    def is_self(self) -> bool:
        """Whether the teacher is the student, at some point of its training."""
        return self.weights is not Weights.EXTERNAL

    @property
    def keeps_average(self) -> bool:
        """Whether the trainer keeps the moving average of the student's weights."""
        return self.weights is Weights.EMA

    @cached_property
    def servers(self) -> frozenset[Holder]:
        """Servers that are asked for something."""
        return frozenset(holder for holder in (self.author, self.scoring_server) if holder is not None)

    @property
    def has_server(self) -> bool:
        """Whether the teacher has a server of its own."""
        return Holder.OWN in self.servers

    @property
    def asks_student(self) -> bool:
        """Whether the student's own server rewrites or scores."""
        return bool(self.servers - {Holder.OWN})

    @property
    def needs_reference(self) -> bool:
        """Whether some context shows y*."""
        return any(context.shows_reference for context in self.possible)

    @property
    def longest(self) -> TeacherContext:
        """The context whose sequences are longest."""
        return max(self.possible, key=lambda context: context.max_length)


def module_holder(weights: Weights, student: StudentConfig) -> Holder:
    """Who has these weights in the training process."""
    frozen = Holder.BASE if student.lora_rank > 0 else Holder.OWN
    return {
        Weights.EXTERNAL: Holder.OWN,
        Weights.FROZEN: frozen,
        Weights.EMA: Holder.AVERAGE,
        Weights.LIVE: Holder.STUDENT,
    }[weights]


def server_holder(weights: Weights, student: StudentConfig, *, upstream: bool) -> Holder | None:
    """Which server has these weights; None where no server does. verl's own methods know the teacher's only."""
    if upstream or weights is Weights.EXTERNAL:
        return Holder.OWN
    if weights is Weights.LIVE:
        return Holder.STUDENT
    if weights is Weights.FROZEN:
        return Holder.BASE if student.serves_base else Holder.OWN
    # The average of a student is a second adapter on its server.
    return Holder.AVERAGE if student.serves_base else None


def make(
    *,
    teacher: TeacherConfig,
    rewrite: RewriteConfig,
    student: StudentConfig,
    trajectory: Trajectory,
    upstream: bool,
    teacher_thinking: bool | None,
    rewrite_thinking: bool | None,
) -> TeacherPlan:
    """Plan of a method with a teacher; the arguments are keys of `trd`. Whether it can be carried out is checked in
    schema.py."""
    context = partial(
        _context,
        teacher=teacher,
        rewrite=rewrite,
        student=student,
        teacher_thinking=teacher_thinking,
        rewrite_thinking=rewrite_thinking,
    )
    rewrites = trajectory is Trajectory.Y_R
    asks_server = upstream or teacher.scorer.is_server
    author_weights = (rewrite.weights or teacher.weights) if rewrites else None
    vanilla, privileged = context("vanilla"), context("privileged")
    # y_r may be written longer than it may be trained on.
    refine = context("refine", max_response_length=rewrite.max_response_length) if rewrites else None
    scored = refine if refine and teacher.context == refine.name else context(teacher.context)
    stand_in = privileged if scored.shows_reference else vanilla
    fallback = stand_in if scored.shows_y_o and rewrites else scored
    scores = teacher.scorer is not Scorer.NONE
    falls_back = rewrites and rewrite.fallback is Fallback.Y_O
    used = [refine, scored if scores else None, fallback if scores and falls_back else None]
    in_use = () if upstream else _once(used)
    shown = _once([vanilla, *used, scored])
    # A sample whose reference is missing, or does not fit, is masked under the vanilla context.
    possible = _once([*shown, privileged]) if any(one.shows_reference for one in shown) else shown
    return TeacherPlan(
        weights=teacher.weights,
        module=module_holder(teacher.weights, student) if teacher.scorer is Scorer.ENGINE and not upstream else None,
        scoring_server=server_holder(teacher.weights, student, upstream=upstream) if asks_server else None,
        author_weights=author_weights,
        author=server_holder(author_weights, student, upstream=upstream) if author_weights else None,
        asks_server=asks_server,
        vanilla=vanilla,
        scored=scored,
        refine=refine,
        fallback=fallback,
        in_use=in_use,
        possible=possible,
    )


def _context(
    name: str,
    *,
    teacher: TeacherConfig,
    rewrite: RewriteConfig,
    student: StudentConfig,
    teacher_thinking: bool | None,
    rewrite_thinking: bool | None,
    max_response_length: int | None = None,
) -> TeacherContext:
    kind = CONTEXTS[name]
    node = {None: None, Node.TEACHER: teacher, Node.REWRITE: rewrite}[kind.node]
    max_prompt_length = node.max_prompt_length if node else student.max_prompt_length
    is_rewrite = kind.node is Node.REWRITE
    return TeacherContext(
        name=name,
        shows_y_o=kind.shows_y_o,
        shows_reference=rewrite.with_reference if kind.shows_reference is None else kind.shows_reference,
        template=node.template if node else None,
        max_prompt_length=max_prompt_length,
        max_length=max_prompt_length + (max_response_length or student.max_response_length),
        thinking_key="trd.rewrite_thinking" if is_rewrite else "trd.teacher_thinking",
        thinking=rewrite_thinking if is_rewrite else teacher_thinking,
    )


def _once(contexts: list[TeacherContext | None]) -> tuple[TeacherContext, ...]:
    """The contexts that are there, each once, in order."""
    return tuple(dict.fromkeys(context for context in contexts if context is not None))
