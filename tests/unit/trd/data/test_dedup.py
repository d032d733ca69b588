"""Which of several copies of a problem stays."""

from collections import Counter

from recipe.trd.data import dedup
from recipe.trd.data.items import Item


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
