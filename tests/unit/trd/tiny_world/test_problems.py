import random

import pytest

from recipe.trd.tiny_world.problems import (
    DIALECT_SEPARATORS,
    ChainProblem,
    dialect_of,
    draw_problem,
    first_error,
    inject_errors,
    is_correct,
)

PROBLEM = ChainProblem.parse("29-6-6+8")
NEWLINES = "29-6=23\n23-6=17\n17+8=25\n\\boxed{25}"
COMMAS = "29-6=23, 23-6=17, 17+8=25, \\boxed{25}"


@pytest.fixture
def problems(config):
    rng = random.Random(0)
    return [draw_problem(config.world, rng, ()) for _ in range(300)]


def test_solution_in_both_dialects():
    assert PROBLEM.solution(0) == NEWLINES
    assert PROBLEM.solution(1) == COMMAS
    assert PROBLEM.answer == 25
    assert PROBLEM.prompt == "Compute 29-6-6+8"


def test_expression_and_prompt_parse_back(problems):
    for problem in problems:
        assert ChainProblem.parse(problem.expression) == problem
        assert ChainProblem.parse(problem.prompt) == problem


@pytest.mark.parametrize("text", ["", "29", "29-", "29*6", "Compute", "29 - 6"])
def test_other_text_is_no_problem(text):
    with pytest.raises(ValueError, match="not an arithmetic chain"):
        ChainProblem.parse(text)


def test_drawn_problems_stay_in_the_world(config, problems):
    world = config.world
    for problem in problems:
        assert 1 <= problem.first <= world.first_max
        assert world.num_operations_min <= len(problem.operations) <= world.num_operations_max
        assert all(1 <= operand <= world.operand_max for _, operand in problem.operations)
        assert all(0 <= step.result <= world.value_max for step in problem.steps)


def test_excluded_expressions_are_not_drawn(config):
    first = draw_problem(config.world, random.Random(0), ())
    assert draw_problem(config.world, random.Random(0), {first.expression}) != first


def test_every_solution_is_exact_and_correct(problems):
    for problem in problems:
        for dialect in range(len(DIALECT_SEPARATORS)):
            text = problem.solution(dialect)
            assert first_error(problem, text) is None
            assert is_correct(problem, text)
            assert dialect_of(text) == dialect


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("29-6=22\n22-6=16\n16+8=24\n\\boxed{24}", 0),
        ("29-6=23, 23-6=18, 18+8=26, \\boxed{26}", 1),
        ("29-6=23\n23-6=17\n17+8=25\n\\boxed{26}", 3),
        ("29-6=23\n23-6=17", 2),
        (NEWLINES + "\n\\boxed{25}", 4),
        ("29-6=23\n23-6=17, 17+8=25\n\\boxed{25}", 0),
        ("", 0),
    ],
)
def test_first_error_is_the_first_line_off_the_chain(text, expected):
    assert first_error(PROBLEM, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NEWLINES, True),
        ("wrong working\n\\boxed{25}", True),
        ("\\boxed{25}, \\boxed{24}", False),
        ("\\boxed{24}, \\boxed{25}", True),
        ("\\boxed{25", False),
        ("\\boxed{17+8}", False),
        ("25", False),
    ],
)
def test_last_boxed_integer_decides(text, expected):
    assert is_correct(PROBLEM, text) is expected


def test_injected_errors_are_errors_in_the_same_notation(problems):
    rng = random.Random(1)
    num_correct_answers = 0
    for index, problem in enumerate(problems):
        text = inject_errors(problem, index % 2, rng)
        assert first_error(problem, text) is not None
        assert text.splitlines() if index % 2 == 0 else text.count("\n") == 0
        assert "=-" not in text
        num_correct_answers += is_correct(problem, text)
    assert num_correct_answers < 0.1 * len(problems)


def test_injected_errors_follow_from_wrong_values():
    rng = random.Random(0)
    for _ in range(100):
        lines = inject_errors(PROBLEM, 0, rng).split("\n")
        last_result = lines[-2].split("=")[1]
        if lines[-1] == f"\\boxed{{{last_result}}}":
            return
    pytest.fail("no injected solution boxes its own last result")
