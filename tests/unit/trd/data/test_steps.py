"""What counts as the same problem, as an evaluation problem, and as too long."""

from collections import Counter

import pytest

from recipe.trd.data import dedup, lengths, prepared_file
from recipe.trd.data.decontaminate import EvaluationIndex, EvaluationProblem, Match
from recipe.trd.data.items import Item, UnusableRow
from recipe.trd.data.mathematics import clean_answer
from recipe.trd.data.normalise import key, words
from recipe.trd.data.programs import custom_tests
from recipe.trd.rewrite.teacher_prompt import chat_ids

FENCE = (
    "A farmer puts a fence of 96 metres around a field that is three times as long as it is wide, so how wide is it?"
)
STOCK = "can be written as m over n where m and n are relatively prime positive integers find m plus n"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Find $x$.", "find  x"),
        ("Simplify \\dfrac{1}{2}.", "simplify $\\frac{1}{2}$"),
        ("Take \\left( a+b \\right)", "take (a + b)"),
        ("\\(x^{2}\\) is", "$x^2$ is"),
        ("ﬁnd １２", "find 12"),
    ],
)
def test_layout_does_not_make_a_problem(text, same):
    assert key(text) == key(same)


@pytest.mark.parametrize(
    ("text", "other"), [("x+1", "x-1"), ("\\frac{1}{23}", "\\frac{12}{3}"), ("1 2", "12"), ("x^{12}", "x^1 2")]
)
def test_signs_and_numbers_do(text, other):
    assert key(text) != key(other)


def test_words_are_runs_of_letters_and_digits():
    assert words("Let $f(x)=\\dfrac{x_1}{2}$, then: 12!") == ("let", "f", "x", "frac", "x", "1", "2", "then", "12")


def kept(*rows, kind="math"):
    dropped = Counter()
    items = [Item(problem, answer, index=index) for index, (problem, answer) in enumerate(rows)]
    return [item.index for item in dedup.deduplicate(items, dropped, kind=kind)], +dropped


def test_first_of_several_copies_stays():
    rows = [("Find $x$.", "1"), ("Find y", "2"), ("find x", "1"), ("Find  x.", "1")]
    assert kept(*rows) == ([0, 1], {dedup.COPY: 2})


def test_copies_with_different_answers_all_go():
    rows = [("Find x", "1"), ("find x", "1"), ("Find y", "2"), ("Find x.", "3")]
    assert kept(*rows) == ([2], {dedup.DISAGREEING: 3})


def test_different_spellings_of_one_answer_agree():
    assert kept(("Find x", "\\frac{1}{2}"), ("Find x.", "0.5")) == ([0], {dedup.COPY: 1})


def test_tests_of_programs_are_not_compared():
    assert kept(("Add", '{"inputs": []}'), ("add", '{"inputs": [""]}'), kind="code") == ([0], {dedup.COPY: 1})


def match(training, *evaluation, ngram=13, min_overlap=0.5):
    problems = [EvaluationProblem("bench", str(number), text) for number, text in enumerate(evaluation)]
    return EvaluationIndex(problems, ngram=ngram, min_overlap=min_overlap).match(training)


def test_evaluation_problem_in_other_layout_is_found():
    assert match(FENCE.upper().replace("96", "$96$"), "Other.", FENCE) == Match("bench", "1", 1.0)


def test_evaluation_problem_inside_of_a_longer_text_is_found():
    assert match(f"Solve this old exercise. {FENCE} Give two decimals.", FENCE) == Match("bench", "0", 1.0)


def test_half_of_the_words_is_the_border():
    spelled = words(FENCE)
    assert len(spelled) == 26
    half = " ".join(spelled[:13])
    assert match(half, FENCE) == Match("bench", "0", 0.5)
    assert match(half, FENCE, min_overlap=0.51) is None
    # Twelve words in a row are no run of thirteen.
    assert match(" ".join(spelled[:12]), FENCE, min_overlap=0.0) is None
    assert match(" ".join(spelled[:12]), FENCE, ngram=12, min_overlap=0.0) == Match("bench", "0", round(12 / 26, 3))


def test_changed_words_split_the_runs():
    spelled = list(words(FENCE))
    spelled[8] = spelled[17] = "else"
    assert match(" ".join(spelled), FENCE) is None
    assert match(" ".join(spelled), FENCE, ngram=8) == Match("bench", "0", round(24 / 26, 3))


DICE = [f"A roll of {number} dice shows all different numbers with a chance that {STOCK}" for number in range(5)]
TRIANGLE = f"In a triangle with sides 13, 14 and 15 the radius of the largest circle inside {STOCK}"


@pytest.mark.parametrize(("num_sharing", "is_stock"), [(4, False), (5, True)])
def test_runs_that_many_evaluation_problems_share_do_not_contaminate(num_sharing, is_stock):
    found = match(TRIANGLE, *DICE[:num_sharing])
    assert (found is None) is is_stock
    # The same problem again is no further one that shares.
    assert match(TRIANGLE, *DICE[:4], DICE[0], DICE[1].upper()) is not None


def test_problem_that_ends_in_a_stock_phrase_is_found_all_the_same():
    training = f"Solve this: {DICE[2]} Give reasons."
    assert match(training, *DICE) == Match("bench", "2", 1.0)


def test_the_most_alike_problem_is_named():
    longer = f"{FENCE} And what is the area of the field that the farmer gets in this way?"
    assert match(FENCE, longer, FENCE).id == "1"
    assert match(f"{longer} Well?", FENCE, longer).overlap == 1.0


def test_short_problems_are_compared_as_a_whole():
    assert match("Compute $2+3$", "Compute 2 + 3.") == Match("bench", "0", 1.0)
    assert match("Compute 2+3, then square the sum", "Compute 2+3") is None
    assert match("Compute 2+4", "Compute 2+3") is None


def test_problem_without_words_matches_nothing():
    assert match("?", "!") is None


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


@pytest.mark.parametrize(
    ("answer", "clean"),
    [("$\\boxed{7}$", "7"), ("\\boxed{$x$}", "x"), ("$a$ and $b$", "$a$ and $b$"), ("\\boxed{1}, \\boxed{2}",) * 2],
)
def test_answers_lose_what_is_around_all_of_them(answer, clean):
    assert clean_answer(answer) == clean


@pytest.mark.parametrize(
    "tests", ["{", "[]", "{}", '{"inputs": ["1"], "outputs": []}', '{"inputs": [], "outputs": []}']
)
def test_tests_of_another_form_are_unusable(tests):
    with pytest.raises(UnusableRow):
        custom_tests(tests)


def test_tests_that_are_in_verls_form_stay():
    for tests in (
        '{"inputs": ["1\\n2"], "outputs": ["3"], "fn_name": "add"}',
        '{"inputs": ["1"], "outputs": ["2"]}',
        '{"assert_case": ["assert f(1) == 2"]}',
    ):
        assert custom_tests(tests) == tests


GOOD = {
    "prompt": [{"role": "user", "content": "p"}],
    "data_source": "d",
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "1"},
    "reference_solution": None,
    "extra_info": {"split": "train", "index": 0, "id": "", "problem": "p"},
}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("prompt", [], "prompt is no list"),
        ("prompt", [{"role": "assistant", "content": "p"}], "does not end with the user's"),
        ("prompt", [{"role": "user", "content": None}], r"prompt\[0\].content is None"),
        ("data_source", "", "data_source is ''"),
        ("reward_model", {"style": "rule", "ground_truth": 3}, "reward_model.ground_truth is 3"),
        ("reference_solution", " ", "reference_solution is ' '"),
        ("extra_info", {"split": "train", "problem": "p"}, "extra_info.index"),
        ("another", 1, "columns"),
    ],
)
def test_rows_that_do_not_fit_the_schema_are_not_written(tmp_path, column, value, message):
    path = tmp_path / "train.parquet"
    with pytest.raises(ValueError, match=message):
        prepared_file.write(path, [GOOD, GOOD | {column: value}])
    assert list(tmp_path.iterdir()) == []


def test_rows_are_written_in_groups_and_all_there(tmp_path):
    path = tmp_path / "train.parquet"
    numbered = ({**GOOD, "extra_info": {**GOOD["extra_info"], "index": index}} for index in range(2500))
    assert prepared_file.write(path, numbered) == 2500
    assert [id_ for id_, _ in prepared_file.problems(path)] == [str(index) for index in range(2500)]
