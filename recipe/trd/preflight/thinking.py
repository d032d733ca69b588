"""Thoughts before an answer: which role's chat template asks for them, and where a response begins on either side.

Hybrid models (Qwen3 and others) take `enable_thinking` in their chat template. Switched off, the template itself writes
an empty block of thoughts behind the assistant marker. A response that was sampled behind such a block and is scored
without it has its first token predicted at another place: the teacher expects a block of thoughts there.
"""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from recipe.trd.config.schema import TrdConfig
from verl_ext.runtime.console import show

SWITCH = "enable_thinking"
"""The argument of chat templates that turns thoughts on or off."""

KWARGS = "data.apply_chat_template_kwargs"
"""Where verl has the arguments of the student's chat template, in training and in validation."""

Side = tuple[PreTrainedTokenizerBase, Mapping[str, Any]]
"""A tokenizer and the arguments of its chat template."""


def switched(template_kwargs: Mapping[str, Any], thinking: bool | None) -> dict[str, Any]:
    """Arguments of a chat template with thoughts on or off; None leaves them as they are."""
    return dict(template_kwargs) if thinking is None else {**template_kwargs, SWITCH: thinking}


def reacts(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> bool:
    """Whether the switch changes anything in a prompt."""
    return _prompt(tokenizer, switched(template_kwargs, True)) != _prompt(tokenizer, switched(template_kwargs, False))


def opening(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> str:
    """What the template puts between the last message and the response: the assistant marker and all behind it."""
    return _prompt(tokenizer, template_kwargs).removeprefix(_prompt(tokenizer, template_kwargs, opened=False))


def _prompt(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any], *, opened: bool = True) -> str:
    messages = [{"role": "user", "content": "1+1=?"}]
    return str(
        tokenizer.apply_chat_template(messages, add_generation_prompt=opened, tokenize=False, **dict(template_kwargs))
    )


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
    _check_known("student", thinking, tokenizer, OmegaConf.select(config, KWARGS) or {})
    OmegaConf.update(config, f"{KWARGS}.{SWITCH}", thinking, force_add=True)


def check_teacher(
    trd: TrdConfig,
    template_kwargs: Mapping[str, Any],
    *,
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
) -> None:
    """Whether the teacher's switches do something, and whether a response begins at one place for both sides.

    Where it does not, a switch that was set to that is a setting of published methods, and said; one that was left out
    is an error.

    Args:
        trd: says which contexts there are.
        template_kwargs: arguments of the student's chat template.
        student: its tokenizer, with the chat template of the run.
        teacher: the tokenizer that its contexts are made with.

    Raises:
        ValueError: the message names the switch.
    """
    for context in sorted(trd.contexts):
        role = "rewrite" if context == "refine" else "teacher"
        thinking = trd.rewrite_thinking if context == "refine" else trd.teacher_thinking
        _check_known(role, thinking, teacher, template_kwargs)
        theirs = switched(template_kwargs, thinking)
        if _begin_alike((student, template_kwargs), (teacher, theirs)):
            if thinking is None and trd.trajectory == "y_o" and not reacts(student, template_kwargs):
                _say_thoughts_expected(context, role, (teacher, theirs))
            continue
        ours = opening(student, template_kwargs)
        difference = (
            f"the first token of a response follows {ours!r} in the student's prompt and "
            f"{opening(teacher, theirs)!r} in the teacher's {context} context"
        )
        remedies = [value for value in (False, True) if opening(teacher, switched(template_kwargs, value)) == ours]
        if remedies and thinking is None:
            raise ValueError(f"{difference}: set trd.{role}_thinking={remedies[0]}, or the other value if it is meant")
        remedy = f"trd.{role}_thinking={remedies[0]} makes them alike" if remedies else "no value of the switch helps"
        show(f"WARNING {difference}; {remedy}")


def _say_thoughts_expected(context: str, role: str, teacher: Side) -> None:
    """Both begin behind the same marker, and the teacher's model begins with thoughts there."""
    tokenizer, kwargs = teacher
    if reacts(tokenizer, kwargs) and opening(tokenizer, kwargs) == opening(tokenizer, switched(kwargs, True)):
        show(
            f"WARNING the student's chat template knows no {SWITCH}, and the teacher's asks for thoughts in the "
            f"{context} context: if the student writes none, set trd.{role}_thinking=False"
        )


def _check_known(
    role: str, thinking: bool | None, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]
) -> None:
    if thinking is not None and not reacts(tokenizer, template_kwargs):
        raise ValueError(
            f"trd.{role}_thinking={thinking}: the chat template of this model does not know {SWITCH}, so nothing would "
            f"change; leave it null (what a template does know goes to {KWARGS})"
        )


def _begin_alike(student: Side, teacher: Side) -> bool:
    """Whether a response's first token is at the same place for both.

    A model without thoughts answers at once behind the marker; a hybrid one does so behind the empty block.
    """
    if opening(*student) == opening(*teacher):
        return True
    for plain, (tokenizer, kwargs) in ((student, teacher), (teacher, student)):
        closed, open_ = (opening(tokenizer, switched(kwargs, value)) for value in (False, True))
        if not reacts(*plain) and opening(tokenizer, kwargs) == closed and opening(*plain) == open_:
            return True
    return False
