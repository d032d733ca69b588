"""Evaluation of programs whose problems bring tests, in the sandbox."""

import json

import pytest

from recipe.trd.evaluate import code, grading, pool
from recipe.trd.evaluate.suites import Problem
from recipe.trd.rewards import sandbox

TESTS = {
    "sum": {"inputs": ["1 2", "3 4"], "outputs": ["3", "7"]},
    "twice": {"inputs": ["3"], "outputs": ["6"], "fn_name": "twice"},
    "half": {"assert_case": ["assert half(4) == 2"]},
}
PROBLEMS = {
    name: Problem(name, ({"role": "user", "content": name},), "taco", "code", json.dumps(tests), {})
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
        ("sum", 2): pool.Outcome.TIMEOUT
    }
    assert {key: grade.pred for key, grade in grades.items()} == programs | {("sum", 4): ""}
    assert grades["sum", 4].error == "no program in the response"


def test_a_program_is_not_run_behind_its_first_failure(monkeypatch):
    runs = []
    run = sandbox.run
    monkeypatch.setattr(sandbox, "run", lambda *arguments: runs.append(arguments) or run(*arguments))
    code.grade(code.TESTS, {("sum", 0): "```python\nprint(0)\n```"}, PROBLEMS, 1, 1.0)
    assert len(runs) == 1


def test_a_machine_without_a_sandbox_is_refused_before_sampling(monkeypatch):
    def broken():
        raise sandbox.SandboxError("programs cannot be fenced in on this machine")

    monkeypatch.setattr(sandbox, "check", broken)
    with pytest.raises(ValueError, match="cannot be fenced in"):
        grading.check(list(PROBLEMS.values()))
