"""Thoughts inside a rewrite, with tokens that are marks and with marks that are spread over tokens."""

import copy

import pytest

from recipe.trd.rewrite import thoughts


@pytest.fixture(params=["one token a mark", "marks of many tokens"])
def spoken(tokenizer, request):
    made = copy.deepcopy(tokenizer)
    if request.param == "one token a mark":
        made.add_tokens([thoughts.OPEN, thoughts.CLOSE])
    return made


def ids_of(tokenizer, text):
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>\nhm, 6+1\n</think>\n\n12+34=46", "12+34=46"),
        ("hm, the prompt opened it</think>\n12+34=46", "12+34=46"),
        ("<think>one</think><think>two</think>46", "46"),
        ("Sure. <think>one</think> 46", "46"),
        ("12+34=46", "12+34=46"),
        ("<think>\n\n</think>\n\n46", "<think>\n\n</think>\n\n46"),  # an empty block is how no thoughts are written
    ],
)
def test_what_is_left_without_thoughts(spoken, text, left):
    ids = ids_of(spoken, text)
    num = thoughts.num_thought_tokens(spoken, ids, keep_close=False)
    assert spoken.decode(ids[num:], skip_special_tokens=True).strip() == left
    assert ids[-1] == spoken.eos_token_id
    assert thoughts.has_thoughts(spoken, ids) == (left != text)


def test_a_student_whose_prompt_is_in_a_thought_closes_it(spoken):
    ids = ids_of(spoken, "hm</think>\n\n46")
    num = thoughts.num_thought_tokens(spoken, ids, keep_close=True)
    assert spoken.decode(ids[num:], skip_special_tokens=True).endswith("</think>\n\n46")
    assert "hm" not in spoken.decode(ids[num:])


@pytest.mark.parametrize("text", ["<think>and on and on", "<think>one</think>46<think>again"])
def test_thoughts_that_never_end(spoken, text):
    assert thoughts.num_thought_tokens(spoken, ids_of(spoken, text), keep_close=False) is None


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("assistant\n<think>\n", True), ("assistant\n", False), ("assistant\n<think>\n\n</think>\n\n", False)],
)
def test_where_a_prompt_ends(spoken, prompt, expected):
    assert thoughts.in_thought(spoken, spoken.encode(prompt, add_special_tokens=False)) is expected
