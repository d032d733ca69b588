"""Evaluation of programs whose problems bring tests, in the sandbox."""

import json

import pytest

from recipe.trd.evaluate import code_graders, grading, pool
from recipe.trd.evaluate.suites import SuiteProblem
from recipe.trd.rewards import sandbox

TESTS = {
    "sum": {"inputs": ["1 2", "3 4"], "outputs": ["3", "7"]},
    "twice": {"inputs": ["3"], "outputs": ["6"], "fn_name": "twice"},
    "half": {"assert_case": ["assert half(4) == 2"]},
}
PROBLEMS = {
    name: SuiteProblem(name, ({"role": "user", "content": name},), "taco", "code", json.dumps(tests), {})
    for name, tests in TESTS.items()
}
LIMITS = grading.Limits(workers=2, timeout_s=1.0)


def test_programs_are_graded_by_the_tests_of_their_problems():
    programs = {
        ("sum", 0): "print(sum(map(int, input().split())))",
        ("sum", 1): "print(3)",
        ("sum", 2): "while True: pass",
        ("sum", 3): "1 / 0",
        ("twice", 0): "def twice(x):\n    return 2 * x",
        ("twice", 1): "def twice(x):\n    return x",
        ("half", 0): "def half(x):\n    return x // 2",
        ("half", 1): "exit()",
    }
    texts = {key: f"```python\n{program}\n```" for key, program in programs.items()} | {("sum", 4): "no idea"}
    grading.check(list(PROBLEMS.values()))
    grades = grading.grade(texts, PROBLEMS, LIMITS)
    assert {key for key, grade in grades.items() if grade.correct} == {("sum", 0), ("twice", 0), ("half", 0)}
    assert grades.keys() == texts.keys()
    assert {key: grade.outcome for key, grade in grades.items() if grade.outcome != "done"} == {
        ("sum", 2): pool.CallOutcome.TIMEOUT
    }
    assert {key: grade.pred for key, grade in grades.items()} == programs | {("sum", 4): ""}
    assert grades["sum", 4].error == "no program in the response"


def test_a_program_is_not_run_behind_its_first_failure(monkeypatch):
    runs = []
    run = sandbox.run
    monkeypatch.setattr(sandbox, "run", lambda *arguments: runs.append(arguments) or run(*arguments))
    code_graders.grade(code_graders.TESTS, {("sum", 0): "```python\nprint(0)\n```"}, PROBLEMS, 1, 1.0)
    assert len(runs) == 1


def test_a_machine_without_a_sandbox_is_refused_before_sampling(monkeypatch):
    def broken():
        raise sandbox.SandboxError("programs cannot be fenced in on this machine")

    monkeypatch.setattr(sandbox, "check", broken)
    with pytest.raises(ValueError, match="cannot be fenced in"):
        grading.check(list(PROBLEMS.values()))


@pytest.mark.parametrize("name", [code_graders.LIVECODEBENCH, "evalplus/humaneval"])
@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na = 1\n```\nthen\n```python\nb = 2\n```", "b = 2"),
        ("```\nx\n```", "x"),
        ("```py\nif x:\n    y\n```", "if x:\n    y"),
        ("```python\ncut off", ""),
        ("no block", ""),
        ("import sys\nprint(1)", ""),
    ],
)
def test_last_closed_block_is_what_public_graders_get(monkeypatch, name, text, program):
    given = []

    def grader(*arguments):
        given.extend(argument for argument in arguments if isinstance(argument, dict) and ("p", 0) in argument)
        return {}

    monkeypatch.setattr(code_graders, "_livecodebench", grader)
    monkeypatch.setattr(code_graders, "_evalplus", grader)
    code_graders.grade(name, {("p", 0): text}, {}, 1, 1.0)
    assert given == [{("p", 0): program}]
