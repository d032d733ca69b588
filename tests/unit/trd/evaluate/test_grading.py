import importlib.util
import json

import pytest

from recipe.trd.evaluate import grading, pool
from recipe.trd.evaluate.suites import SuiteProblem

LIMITS = grading.Limits(workers=1, timeout_s=1.0)


def test_calls_that_hang_or_crash_cost_only_themselves():
    calls = {
        "2 * 3": "done",
        "__import__('time').sleep(600)": "timeout",
        "2 * 4": "done",
        "__import__('os').kill(__import__('os').getpid(), 11)": "crashed",
        "1 / 0": "crashed",
        "2 * 5": "done",
        "len(bytearray(64 << 30))": "crashed",
        "2 * 6": "done",
    }
    results = dict(pool.run(eval, [(text,) for text in calls], workers=2, timeout_s=1.0))
    assert [results[n].outcome for n in range(len(calls))] == list(calls.values())
    assert [results[n].value for n in (0, 2, 5, 7)] == [6, 8, 10, 12]
    assert "exit code -11" in results[3].error
    assert results[4].error == "ZeroDivisionError: division by zero"
    assert "MemoryError" in results[6].error


def test_no_call_needs_no_worker():
    assert list(pool.run(eval, [], workers=2, timeout_s=1.0)) == []


def problem(identity="p", truth="25", **fields):
    values = {"data_source": "s", "ability": "math", "extra_info": {}, "messages": ({"role": "user", "content": "x"},)}
    return SuiteProblem(id=identity, ground_truth=truth, **{**values, **fields})


def grade(texts, truth="25"):
    samples = {("p", number): text for number, text in enumerate(texts)}
    grades = grading.grade(samples, {"p": problem(truth=truth)}, LIMITS)
    return [grades["p", number] for number in range(len(texts))]


def test_last_box_is_compared_as_mathematics():
    grades = grade(["\\boxed{25}", "\\boxed{25.0}", "\\boxed{1} \\boxed{24}", "25", "\\boxed{\\frac{50}{2}}"])
    assert [g.correct for g in grades] == [True, True, False, False, True]
    assert [g.pred for g in grades] == ["25", "25.0", "24", "", "\\frac{50}{2}"]
    assert {g.outcome for g in grades} == {"done"}


def test_equal_answers_vote_together_and_no_answer_does_not_vote():
    texts = ["\\boxed{25.0}", "\\boxed{25}", "\\boxed{1/2}", "\\boxed{0.5}", "\\boxed{7}", "\\boxed{07}", "none"]
    votes = [g.vote for g in grade(texts)]
    assert votes[:2] == [0, 0]
    assert votes[2] == votes[3] != votes[4] == votes[5]
    assert votes[6] is None
    assert 0 not in votes[2:]
    assert grading.wrong_votes(grade(texts)) == [2, 2]


@pytest.mark.parametrize("outcome", [pool.CallOutcome.TIMEOUT, pool.CallOutcome.CRASHED])
def test_grade_that_fails_is_counted_and_wrong(monkeypatch, outcome):
    failed = pool.CallResult(outcome, error="why")
    monkeypatch.setattr(pool, "run", lambda function, calls, **limits: enumerate(failed for _ in calls))
    grades = grade(["\\boxed{x}", "\\boxed{y}", "none"])
    assert [(g.correct, g.outcome, g.error) for g in grades[:2]] == [(False, outcome, "why")] * 2
    # Nothing says that x and y are equal: they are two answers.
    assert {g.vote for g in grades} == {1, 2, None}


def test_kinds_without_a_grader_are_refused_before_sampling():
    with pytest.raises(ValueError, match="no grader for problems of ability 'poetry'"):
        grading.check([problem(ability="poetry")])
    with pytest.raises(ValueError, match="no grader for programs of 'taco'"):
        grading.check([problem(ability="code", data_source="taco")])
    with pytest.raises(ValueError, match="ground truth of mathematics"):
        grading.check([problem(truth=["1"])])


@pytest.mark.parametrize(
    ("source", "package"), [("humaneval_plus", "evalplus"), ("mbpp_plus", "evalplus"), ("livecodebench", "lcb_runner")]
)
def test_grader_that_is_not_installed_is_named_with_the_way_to_install_it(source, package):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ValueError, match=r"which this environment lacks: (pip install|git clone)"):
        grading.check([problem(ability="code", data_source=source)])


def programs(source, problems):
    """Samples 0 and 1 of each problem: a right and a wrong program; one of them hangs."""
    texts = {}
    for identity in problems:
        texts[identity, 0] = "```python\ndef double(x):\n    return 2 * x\n```"
        texts[identity, 1] = "```python\ndef double(x):\n    return x\n```"
    return texts


def test_livecodebench_grades_programs():
    pytest.importorskip("lcb_runner", reason="LiveCodeBench is not installed")
    tests = json.dumps({"inputs": ["3", "-1"], "outputs": ["6", "-2"], "fn_name": "double"})
    stdin = json.dumps({"inputs": ["3\n"], "outputs": ["6\n"]})
    problems = {
        name: problem(name, truth, ability="code", data_source="livecodebench")
        for name, truth in (("call", tests), ("stdin", stdin))
    }
    texts = programs("livecodebench", ["call"])
    texts["stdin", 0] = "```python\nprint(2 * int(input()))\n```"
    texts["stdin", 1] = "```python\nwhile True: pass\n```"
    texts["stdin", 2] = "no program"
    grades = grading.grade(texts, problems, LIMITS)
    assert {key: g.correct for key, g in grades.items()} == {
        ("call", 0): True,
        ("call", 1): False,
        ("stdin", 0): True,
        ("stdin", 1): False,
        ("stdin", 2): False,
    }
    assert grades["stdin", 2].error


def test_evalplus_grades_programs(tmp_path, monkeypatch):
    pytest.importorskip("evalplus", reason="EvalPlus is not installed")
    task = {
        "task_id": "HumanEval/0",
        "prompt": "def double(x):\n",
        "canonical_solution": "    return 2 * x\n",
        "entry_point": "double",
        "contract": "",
        "base_input": [[1]],
        "plus_input": [[3], [-1]],
        "atol": 0,
    }
    (tmp_path / "set.jsonl").write_text(json.dumps(task) + "\n")
    monkeypatch.setenv("HUMANEVAL_OVERRIDE_PATH", str(tmp_path / "set.jsonl"))
    fields = {"ability": "code", "data_source": "humaneval_plus", "extra_info": {"id": "HumanEval/0"}}
    texts = programs("humaneval_plus", ["p"])
    texts["p", 2] = "```python\ndef double(x):\n    return 2 if x == 1 else 0\n```"
    grades = grading.grade(texts, {"p": problem("p", "{}", **fields)}, LIMITS)
    assert [grades["p", number].correct for number in range(3)] == [True, False, False]
