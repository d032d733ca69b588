"""Prompts of the teacher in token ids: which context it sees, and how that context is made to fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from recipe.trd.rewrite import prompts

Message = Mapping[str, Any]


@dataclass(frozen=True)
class TeacherPrompt:
    """A tokenised prompt of the teacher."""

    ids: list[int]
    """Token ids, up to and including the marker after which the assistant speaks."""
    num_cut: int = 0
    """Tokens of y_o that were left out to make it fit."""
    num_cut_reference: int = 0
    """Tokens of the reference solution that were left out."""


def reference(columns: Mapping[str, Any], key: str) -> str | None:
    """The reference solution of a sample, by `column` or `column.key`; None where it has none, or an empty one."""
    value: Any = columns
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return str(value) if value is not None and str(value).strip() else None


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template_kwargs: Mapping) -> list[int]:
    """Token ids of a conversation that ends where the assistant is to speak."""
    return list(
        tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            **template_kwargs,
        )
    )


def plain_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of token ids in which nothing reads as a control token: neither sampled as one nor spelled out."""
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
    controls = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    # Again, until none is left: taking one out can bring another together.
    while any(control in text for control in controls):
        for control in controls:
            text = text.replace(control, "")
    return text


def vanilla(
    tokenizer: PreTrainedTokenizerBase, raw_prompt: Sequence[Message], template_kwargs: Mapping
) -> TeacherPrompt:
    """Context x: the student's own conversation in the teacher's chat template."""
    return TeacherPrompt(chat_ids(tokenizer, raw_prompt, template_kwargs))


def templated(
    tokenizer: PreTrainedTokenizerBase,
    raw_prompt: Sequence[Message],
    *,
    template: str,
    y_o_ids: Sequence[int] | None,
    y_star: str | None,
    max_length: int,
    template_kwargs: Mapping,
) -> TeacherPrompt | None:
    """Context (x, y_o), (x, y*) or (x, y*, y_o): the last user message becomes the template; earlier messages stay.

    Control tokens are left out of the texts, so nothing in them can end the teacher's user turn. Where the context is
    too long, first the tail of y_o is cut, then that of y*, in token ids; the problem and the instructions never are.

    Args:
        tokenizer: the teacher's.
        raw_prompt: the student's conversation; its last message is the problem.
        template: a name or path, see prompts.py.
        y_o_ids: sampled ids of y_o, end of turn included or not; None for a context without it.
        y_star: the reference solution; None for a context without it.
        max_length: tokens.
        template_kwargs: arguments of the chat template.

    Returns:
        The prompt, or None when it does not fit even without any of y_o and y*.
    """
    *before, problem = raw_prompt
    y_star_ids = None if y_star is None else tokenizer.encode(y_star, add_special_tokens=False)
    kept, kept_star = len(y_o_ids or ()), len(y_star_ids or ())
    while True:
        text = prompts.render(
            template,
            problem=problem["content"],
            y_o=None if y_o_ids is None else plain_text(tokenizer, y_o_ids[:kept]),
            y_star=None if y_star_ids is None else plain_text(tokenizer, y_star_ids[:kept_star]),
        )
        ids = chat_ids(tokenizer, [*before, {"role": "user", "content": text}], template_kwargs)
        excess = len(ids) - max_length
        if excess <= 0:
            cut, cut_reference = len(y_o_ids or ()) - kept, len(y_star_ids or ()) - kept_star
            return TeacherPrompt(ids, num_cut=cut, num_cut_reference=cut_reference)
        # Another round may be needed: tokens merge differently at the new end of a text.
        if kept > 0:
            kept = max(0, kept - excess)
        elif kept_star > 0:
            kept_star = max(0, kept_star - excess)
        else:
            return None
