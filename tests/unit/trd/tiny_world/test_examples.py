import random

import pytest

from recipe.trd.tiny_world.examples import ExampleSource, Task, task_prompt
from recipe.trd.tiny_world.problems import ChainProblem, dialect_of, first_error

PROBLEM = ChainProblem.parse("9-6")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Task.SOLVE, "Compute 9-6"),
        (Task.REWRITE, "Rewrite your solution. Problem: Compute 9-6\nYour solution:\nwrong"),
        (Task.PRIVILEGED_SOLVE, "Compute 9-6\nReference solution:\nright"),
        (
            Task.PRIVILEGED_REWRITE,
            "Rewrite your solution. Problem: Compute 9-6\nReference solution:\nright\nYour solution:\nwrong",
        ),
    ],
)
def test_prompt_of_each_task(task, expected):
    assert task_prompt(task, PROBLEM, y_o="wrong", y_star="right") == expected


@pytest.fixture
def source(config):
    return ExampleSource(world=config.world, excluded=frozenset(), rng=random.Random(0))


def problem_of(prompt: str) -> ChainProblem:
    line = next(line for line in prompt.split("\n") if "Compute" in line)
    return ChainProblem.parse(line[line.index("Compute") :])


def test_every_target_is_an_exact_solution(config, source):
    for _ in range(50):
        for example in source.teacher_batch(config.teacher) + source.student_batch(config.student):
            assert first_error(problem_of(example.prompt), example.response) is None


def test_rewrites_keep_the_dialect_and_some_solutions_are_right_already(make_config, source):
    config = make_config("teacher.tasks.solve=0.0", "teacher.tasks.privileged_rewrite=0.0")
    num_good = num_all = 0
    for _ in range(100):
        for example in source.teacher_batch(config.teacher):
            y_o = example.prompt.split("Your solution:\n")[1]
            assert dialect_of(y_o) == dialect_of(example.response)
            num_good += y_o == example.response
            num_all += 1
    assert num_good / num_all == pytest.approx(config.teacher.good_frac, abs=0.08)


def test_student_prefers_its_own_dialect(config, source):
    dialects = [dialect_of(x.response) for _ in range(100) for x in source.student_batch(config.student)]
    assert sum(dialects) / len(dialects) == pytest.approx(config.student.dialect_probability, abs=0.08)


def test_excluded_problems_are_never_trained_on(config):
    seen = {problem_of(x.prompt).expression for x in _draw(config, excluded=frozenset())}
    again = {problem_of(x.prompt).expression for x in _draw(config, excluded=seen)}
    assert not seen & again


def _draw(config, *, excluded):
    source = ExampleSource(world=config.world, excluded=excluded, rng=random.Random(3))
    return [example for _ in range(10) for example in source.student_batch(config.student)]
