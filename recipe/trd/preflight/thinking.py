"""Thoughts before an answer: does each chat template know the switch, and does a response begin at one place for both?

Hybrid models (Qwen3 and others) take `enable_thinking` in their chat template. Switched off, the template itself writes
an empty block of thoughts after the assistant marker. A response that was sampled after such a block and is scored
without it has its first token predicted at another place: the teacher expects a block of thoughts there.
"""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from recipe.trd.config.axes import Trajectory
from recipe.trd.config.schema import TrdConfig
from recipe.trd.config.teacher_plan import TeacherContext
from recipe.trd.rewrite.chat_template import SWITCH, opening, reacts, switched
from verl_ext.runtime.console import show

KWARGS = "data.apply_chat_template_kwargs"
"""Where verl has the arguments of the student's chat template, in training and in validation."""

Side = tuple[PreTrainedTokenizerBase, Mapping[str, Any]]
"""A tokenizer and the arguments of its chat template."""


def set_for_student(config: DictConfig, trd: TrdConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Put `trd.student_thinking` where verl's rollouts and validation read it.

    Raises:
        ValueError: it contradicts what is there, or the chat template does not know the switch.
    """
    thinking = trd.student_thinking
    if thinking is None:
        return
    given = OmegaConf.select(config, f"{KWARGS}.{SWITCH}")
    if given is not None and given != thinking:
        raise ValueError(
            f"trd.student_thinking={thinking} contradicts {KWARGS}.{SWITCH}={given}, by which verl builds the "
            "student's prompts in training and validation; leave one of them out"
        )
    _check_known("trd.student_thinking", thinking, tokenizer, OmegaConf.select(config, KWARGS) or {})
    OmegaConf.update(config, f"{KWARGS}.{SWITCH}", thinking, force_add=True)


def check_teacher(
    trd: TrdConfig,
    template_kwargs: Mapping[str, Any],
    *,
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
) -> None:
    """Whether the teacher's switches do something, and whether a response begins at one place for both sides.

    Where it does not, a switch that was set to that is a setting of published methods, and warned of; one that was left
    out is an error.

    Args:
        trd: says which contexts there are.
        template_kwargs: arguments of the student's chat template.
        student: its tokenizer, with the chat template of the run.
        teacher: the tokenizer that its contexts are made with.

    Raises:
        ValueError: the message names the switch.
    """
    assert trd.teacher_plan is not None, "there is a teacher"
    for context in sorted(trd.teacher_plan.in_use, key=lambda context: context.name):
        key, thinking = context.thinking_key, context.thinking
        # The refine context thinks not by default, which a template without the switch does anyway.
        if thinking or key != "trd.rewrite_thinking":
            _check_known(key, thinking, teacher, template_kwargs)
        teacher_kwargs = switched(template_kwargs, thinking)
        if _begin_alike((student, template_kwargs), (teacher, teacher_kwargs)):
            if thinking is None and trd.trajectory is Trajectory.Y_O and not reacts(student, template_kwargs):
                _warn_of_thoughts(context, (teacher, teacher_kwargs))
            continue
        student_opening = opening(student, template_kwargs)
        difference = (
            f"the first token of a response follows {student_opening!r} in the student's prompt and "
            f"{opening(teacher, teacher_kwargs)!r} in the teacher's {context.name} context"
        )
        remedies = [
            value for value in (False, True) if opening(teacher, switched(template_kwargs, value)) == student_opening
        ]
        if remedies and thinking is None:
            raise ValueError(f"{difference}: set {key}={remedies[0]}, or the other value if it is meant")
        remedy = f"{key}={remedies[0]} makes them alike" if remedies else "no value of the switch helps"
        show(f"WARNING {difference}; {remedy}")


def _warn_of_thoughts(context: TeacherContext, teacher: Side) -> None:
    """Both begin after the same marker, and the teacher's model begins with thoughts there."""
    tokenizer, kwargs = teacher
    if reacts(tokenizer, kwargs) and opening(tokenizer, kwargs) == opening(tokenizer, switched(kwargs, True)):
        show(
            f"WARNING the student's chat template knows no {SWITCH}, and the teacher's asks for thoughts in the "
            f"{context.name} context: if the student writes none, set {context.thinking_key}=False"
        )


def _check_known(
    key: str, thinking: bool | None, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]
) -> None:
    if thinking is not None and not reacts(tokenizer, template_kwargs):
        raise ValueError(
            f"{key}={thinking}: the chat template of this model does not know {SWITCH}, so nothing would "
            f"change; leave it null (what a template does know goes to {KWARGS})"
        )


def _begin_alike(student: Side, teacher: Side) -> bool:
    """Whether a response's first token is at the same place for both.

    A model without thoughts answers at once after the marker; a hybrid one does so after the empty block.
    """
    if opening(*student) == opening(*teacher):
        return True
    for plain, (tokenizer, kwargs) in ((student, teacher), (teacher, student)):
        closed, open_ = (opening(tokenizer, switched(kwargs, value)) for value in (False, True))
        if not reacts(*plain) and opening(tokenizer, kwargs) == closed and opening(*plain) == open_:
            return True
    return False
