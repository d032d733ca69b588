"""Prompts of the teacher in token ids: which context it sees, and how that context is made to fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from recipe.trd import prompts

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """A tokenised prompt of the teacher."""

    ids: list[int]
    """Token ids, up to and including the marker after which the assistant speaks."""
    num_cut: int
    """Tokens of y_o that were left out to make it fit."""


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


def vanilla(tokenizer: PreTrainedTokenizerBase, raw_prompt: Sequence[Message], template_kwargs: Mapping) -> Context:
    """Context x: the student's own conversation in the teacher's chat template."""
    return Context(chat_ids(tokenizer, raw_prompt, template_kwargs), num_cut=0)


def refine(
    tokenizer: PreTrainedTokenizerBase,
    raw_prompt: Sequence[Message],
    y_o_ids: Sequence[int],
    *,
    template: str,
    max_length: int,
    template_kwargs: Mapping,
) -> Context | None:
    """Context (x, y_o): the last user message becomes the template with the problem and y_o; earlier messages stay.

    Control tokens are left out of the text of y_o, so nothing in it can end the teacher's user turn. Where the context
    is too long, the tail of y_o is cut, in token ids; the problem and the instructions never are.

    Args:
        tokenizer: the teacher's.
        raw_prompt: the student's conversation; its last message is the problem.
        y_o_ids: sampled ids of y_o, end of turn included or not.
        template: `trd.rewrite.template`.
        max_length: `trd.rewrite.max_prompt_length`, tokens.
        template_kwargs: arguments of the chat template.

    Returns:
        The context, or None when it does not fit even without any of y_o.
    """
    *before, problem = raw_prompt
    num_kept = len(y_o_ids)
    while True:
        y_o = plain_text(tokenizer, y_o_ids[:num_kept])
        text = prompts.render(template, problem=problem["content"], y_o=y_o)
        ids = chat_ids(tokenizer, [*before, {"role": "user", "content": text}], template_kwargs)
        excess = len(ids) - max_length
        if excess <= 0:
            return Context(ids, num_cut=len(y_o_ids) - num_kept)
        if num_kept == 0:
            return None
        # One more round may be needed: tokens merge differently at the new end of y_o.
        num_kept = max(0, num_kept - excess)
