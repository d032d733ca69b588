"""Thoughts inside a rewrite: where they end, and what is left of y_r without them."""

from bisect import bisect_left
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<think>", "</think>"
"""How models with thoughts mark them (Qwen3, DeepSeek-R1 and those distilled from it)."""


def in_thought(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int]) -> bool:
    """Whether a prompt ends inside a thought: the template has written the opening mark (DeepSeek-R1's does)."""
    text = _text(tokenizer, prompt_ids)
    return text.rfind(OPEN) > text.rfind(CLOSE)


def has_thoughts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Whether a rewrite holds thoughts, finished or not; an empty block is none."""
    text = _text(tokenizer, ids)
    start = text.find(OPEN) + len(OPEN) if OPEN in text else 0
    end = text.rfind(CLOSE) if CLOSE in text else len(text)
    return (OPEN in text or CLOSE in text) and bool(text[start:end].strip())


def num_thought_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, keep_close: bool) -> int | None:
    """Number of tokens at the beginning of a rewrite that are thoughts, or lead to them; None where they do not end.

    Args:
        tokenizer: of the ids.
        ids: the rewrite.
        keep_close: leave the closing mark, for a student whose prompt ends inside a thought.
    """
    text = _text(tokenizer, ids)
    if not has_thoughts(tokenizer, ids):
        return 0
    close = text.rfind(CLOSE)
    if close < text.rfind(OPEN) or close < 0:
        return None
    if keep_close:
        return _num_tokens(tokenizer, ids, close + 1) - 1
    num = _num_tokens(tokenizer, ids, close + len(CLOSE))
    # The line breaks after a thought belong to it.
    while num < len(ids) and not _text(tokenizer, ids[num : num + 1]).strip():
        num += 1
    return num


def _num_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], num_characters: int) -> int:
    """Fewest tokens whose text has so many characters."""
    return bisect_left(range(len(ids)), num_characters, key=lambda num: len(_text(tokenizer, ids[:num])))


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))
