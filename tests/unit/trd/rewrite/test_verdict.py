import pytest

from recipe.trd.rewrite.verdict import Verdict, judge

END, OTHER_END = 2, 9


@pytest.mark.parametrize(
    ("y_r_ids", "finish_reason", "expected"),
    [
        ([5, 6, END], "stop", Verdict.ACCEPTED),
        ([5, 6, OTHER_END], "stop", Verdict.ACCEPTED),
        ([5, 6, 7, END], "stop", Verdict.ACCEPTED),  # exactly max_length, end of turn included
        ([5, 6, 7, END], "length", Verdict.ACCEPTED),  # the last allowed token was the end of turn
        ([5, 6, 7, 8, END], "stop", Verdict.OVERLONG),
        ([5, 6, 7], "length", Verdict.UNFINISHED),
        ([5, 6, 7, 8, 8, 8], "length", Verdict.UNFINISHED),  # too long as well, but that is not why
        ([5, END, 6], "length", Verdict.UNFINISHED),  # an end of turn inside ends nothing
        ([5], "stop", Verdict.UNFINISHED),  # stopped by something that is no end of turn
        ([5], None, Verdict.UNFINISHED),
        ([], "stop", Verdict.EMPTY),
        ([END], "stop", Verdict.EMPTY),
        ([], "length", Verdict.EMPTY),
        ([5, 6, END], "abort", Verdict.FAILED),
        ([], "abort", Verdict.FAILED),
    ],
)
def test_verdict(y_r_ids, finish_reason, expected):
    got = judge(y_r_ids, finish_reason=finish_reason, eos_token_ids=(END, OTHER_END), max_length=4)
    assert got is expected


def test_one_token_and_its_end_of_turn_is_a_response():
    assert judge([5, END], finish_reason="stop", eos_token_ids=[END], max_length=2) is Verdict.ACCEPTED


def test_verdicts_are_the_words_of_metrics_and_dumps():
    # Names of metrics (`trd/verdict/<word>`) and values in rollouts/*.jsonl; renaming one breaks files of earlier runs.
    assert {str(verdict) for verdict in Verdict} == {
        "accepted",
        "empty",
        "unfinished",
        "overlong",
        "prompt_too_long",
        "failed",
        "no_reference",
        "thoughts",
        "copy",
        "repetitive",
        "length_ratio",
        "meta",
        "leak",
        "unlikely",
        "no_answer",
        "wrong",
        "not_needed",
    }


def test_an_unfinished_rewrite_can_be_let_through_but_not_an_overlong_one():
    asked = {"finish_reason": "length", "eos_token_ids": [END], "allow_unfinished": True}
    assert judge([5, 6], max_length=2, **asked) is Verdict.ACCEPTED
    assert judge([5, 6, 7], max_length=2, **asked) is Verdict.OVERLONG
    assert judge([], max_length=2, **asked) is Verdict.EMPTY


@pytest.mark.parametrize("verdict", Verdict)
def test_asking_again_helps_where_the_teacher_wrote_or_failed(verdict):
    assert verdict.is_final == (verdict in {"accepted", "no_reference", "prompt_too_long", "not_needed"})
