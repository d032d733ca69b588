"""Lengths of prompts, with the chat template."""

from collections import Counter

from recipe.trd.data import lengths
from recipe.trd.rewrite.teacher_prompt import chat_ids


def rows(*problems):
    return [{"prompt": [{"role": "user", "content": problem}]} for problem in problems]


def test_lengths_count_the_chat_template(tokenizer):
    short, long = rows("7-5", "7-5=2, so 12+34=46")
    limit = len(chat_ids(tokenizer, long["prompt"], {})) - 1
    assert len(tokenizer.encode(long["prompt"][0]["content"])) < limit
    dropped = Counter()
    counter = lengths.PromptLengths(tokenizer, limit, {})
    assert list(counter.filter([short, long, short], dropped)) == [short, short]
    assert dropped == {f"prompt longer than {limit} tokens": 1}
    length = len(chat_ids(tokenizer, short["prompt"], {}))
    assert counter.summary() == {"median": length, "p95": length, "max": length}
    assert list(lengths.PromptLengths(tokenizer, limit + 1, {}).filter([long], Counter())) == [long]


def test_arguments_of_the_chat_template_count(tokenizer, monkeypatch):
    template = "{{ messages[0]['content'] }}{% if thinking %} with care and at length{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    (row,) = rows("7-5")
    plain, thinking = (lengths.PromptLengths(tokenizer, None, kwargs) for kwargs in ({}, {"thinking": True}))
    for counter in (plain, thinking):
        list(counter.filter([row], Counter()))
    assert thinking.summary()["max"] > plain.summary()["max"]
