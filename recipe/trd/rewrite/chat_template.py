"""The chat template's switch for thoughts, and where a response begins under a template."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

SWITCH = "enable_thinking"
"""The argument of chat templates that turns thoughts on or off."""


def switched(template_kwargs: Mapping[str, Any], thinking: bool | None) -> dict[str, Any]:
    """Arguments of a chat template with thoughts on or off; None leaves them as they are."""
    return dict(template_kwargs) if thinking is None else {**template_kwargs, SWITCH: thinking}


def reacts(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> bool:
    """Whether the switch changes anything in a prompt."""
    return _prompt(tokenizer, switched(template_kwargs, True)) != _prompt(tokenizer, switched(template_kwargs, False))


def opening(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> str:
    """What the template puts between the last message and the response: the assistant marker and what follows it."""
    return _prompt(tokenizer, template_kwargs).removeprefix(_prompt(tokenizer, template_kwargs, opened=False))


def _prompt(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any], *, opened: bool = True) -> str:
    messages = [{"role": "user", "content": "1+1=?"}]
    return str(
        tokenizer.apply_chat_template(messages, add_generation_prompt=opened, tokenize=False, **dict(template_kwargs))
    )
