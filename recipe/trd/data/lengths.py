"""Lengths of prompts as the run will count them: in tokens, with the chat template."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from recipe.trd.rewrite.teacher_prompt import chat_ids
from verl_ext.runtime.errors import first_line


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Tokenizer of the model that will be trained.

    Raises:
        ValueError: there is none, or it has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"--tokenizer {path}: none can be read there: {first_line(error)}") from error
    if not tokenizer.chat_template:
        raise ValueError(f"--tokenizer {path}: it has no chat template; take the tokenizer of the instruct model")
    return tokenizer


class PromptLengths:
    """Leaves out long prompts and counts the lengths of the others."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, max_length: int | None, template_kwargs: Mapping[str, Any]
    ) -> None:
        self._tokenizer, self._max_length, self._template_kwargs = tokenizer, max_length, template_kwargs
        self._lengths: Counter[int] = Counter()

    def filter(self, rows: Iterable[dict[str, Any]], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
        """Rows whose templated prompt has at most `max_length` tokens; all, uncounted, without a tokenizer."""
        if self._tokenizer is None:
            yield from rows
            return
        for row in rows:
            length = len(chat_ids(self._tokenizer, row["prompt"], self._template_kwargs))
            if self._max_length is not None and length > self._max_length:
                dropped[f"prompt longer than {self._max_length} tokens"] += 1
                continue
            self._lengths[length] += 1
            yield row

    def summary(self) -> dict[str, int]:
        """Tokens of the prompts that were kept: median, 95th percentile and longest; empty if there were none."""
        ordered = sorted(self._lengths.elements())
        if not ordered:
            return {}
        return {
            "median": ordered[len(ordered) // 2],
            "p95": ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)],
            "max": ordered[-1],
        }
