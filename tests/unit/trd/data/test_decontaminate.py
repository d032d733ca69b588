"""What counts as an evaluation problem."""

import pytest

from recipe.trd.data.decontaminate import EvaluationIndex, EvaluationProblem, Match
from recipe.trd.data.normalise import words

FENCE = (
    "A farmer puts a fence of 96 metres around a field that is three times as long as it is wide, so how wide is it?"
)
STOCK = "can be written as m over n where m and n are relatively prime positive integers find m plus n"


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
