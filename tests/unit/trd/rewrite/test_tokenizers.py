"""Pairs of tokenizers that can and cannot share token ids."""

import copy

import pytest

from recipe.trd.rewrite.tokenizers import check_same_tokens

PATHS = {"student_path": "models/student", "teacher_path": "models/teacher"}


@pytest.fixture
def other(tokenizer):
    return copy.deepcopy(tokenizer)


@pytest.mark.parametrize("eos_remap", [None, False, True])
def test_one_tokenizer_is_accepted(tokenizer, other, eos_remap):
    check_same_tokens(tokenizer, other, **PATHS, eos_remap=eos_remap)


@pytest.mark.parametrize("eos_remap", [None, False, True])
def test_other_vocabulary_is_refused(tokenizer, other, eos_remap):
    other.add_tokens(["<think>"])
    message = (
        r"student models/student and teacher models/teacher have different tokenizers \(for one, '<think>' is None"
    )
    with pytest.raises(ValueError, match=message):
        check_same_tokens(tokenizer, other, **PATHS, eos_remap=eos_remap)


@pytest.mark.parametrize(
    ("eos_remap", "end"), [(None, r"\(base or instruct\)$"), (False, r"\(base or instruct\), or set .*eos_remap=True")]
)
def test_other_end_of_turn_is_refused_with_what_can_be_done(tokenizer, other, eos_remap, end):
    other.eos_token = "<|endoftext|>"
    with pytest.raises(ValueError, match=rf"'<\|im_end\|>' and '<\|endoftext\|>'.*{end}"):
        check_same_tokens(tokenizer, other, **PATHS, eos_remap=eos_remap)


def test_other_end_of_turn_is_accepted_where_it_is_remapped(tokenizer, other):
    other.eos_token = "<|endoftext|>"
    check_same_tokens(tokenizer, other, **PATHS, eos_remap=True)
