"""Grades generated code with the public graders, EvalPlus and LiveCodeBench, or with tests as the training reward does.

Generated code is not to be trusted. The public graders run it in processes with time limits and without a sandbox: use
a container or a virtual machine. Problems that come with tests are graded in the sandbox of `recipe.trd.rewards`.
"""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.trd.evaluate import pool
from recipe.trd.evaluate.store import Key
from recipe.trd.evaluate.suites import SuiteProblem
from recipe.trd.rewards import code_grading, code_tests, sandbox
from recipe.trd.rewards.code_extraction import last_code
from verl_ext.runtime import files

ABILITIES = frozenset({"code", "coding"})

EVALPLUS = {"humaneval_plus": "humaneval", "mbpp_plus": "mbpp"}
"""`data_source` to EvalPlus's name of the set."""

LIVECODEBENCH = "livecodebench"

TESTS = "tests"
"""Name of the grader for problems whose ground truth is tests: TACO, APPS, own data."""

_PACKAGE = {"evalplus": "evalplus", LIVECODEBENCH: "lcb_runner"}
_HOW_TO_INSTALL = {
    "evalplus": "pip install evalplus==0.3.1",
    LIVECODEBENCH: "git clone https://github.com/LiveCodeBench/LiveCodeBench and put it on PYTHONPATH",
}

# Runs where LiveCodeBench is importable; from standard input, to the file that is its argument.
_LIVECODEBENCH_SCRIPT = """
import json, sys
from lcb_runner.evaluation.compute_code_generation_metrics import evaluate_generations
task = json.load(sys.stdin)
samples = [{"input_output": tests} for tests in task["tests"]]
results, _ = evaluate_generations(samples, task["programs"], num_process_evaluate=task["workers"],
                                  timeout=task["timeout_s"])
passed = [[all(test is True or test == 1 for test in tests) and len(tests) > 0 for tests in results[number]]
          for number in range(len(samples))]
json.dump(passed, open(sys.argv[1], "w"))
"""


@dataclass(frozen=True)
class CodeGrade:
    """The result of one program."""

    correct: bool
    program: str
    outcome: str = pool.CallOutcome.DONE
    error: str = ""


def grader_of(problem: SuiteProblem) -> str:
    """Name of the grader: `evalplus/<set>`, `livecodebench` or `tests`.

    Raises:
        ValueError: the first two do not know the problem, and it brings no tests.
    """
    if problem.data_source in EVALPLUS:
        return f"evalplus/{EVALPLUS[problem.data_source]}"
    if problem.data_source.startswith(LIVECODEBENCH):
        return LIVECODEBENCH
    # Tests may be megabytes, and this is asked for every sample: they are read when they are run.
    if isinstance(problem.ground_truth, str) and re.search('"inputs"|"assert_case"', problem.ground_truth):
        return TESTS
    raise ValueError(
        f"no grader for programs of {problem.data_source!r}: EvalPlus grades {' and '.join(EVALPLUS)}, "
        f"LiveCodeBench {LIVECODEBENCH}, and the ground truth of others must be tests with inputs or assert_case"
    )


def check_installed(name: str) -> None:
    """Find out before sampling whether the samples can be graded.

    Raises:
        ValueError: the grader is not installed, or no sandbox works here; the message says what to do.
    """
    if name == TESTS:
        try:
            sandbox.check()
        except sandbox.SandboxError as error:
            raise ValueError(str(error)) from error
        return
    grader = name.partition("/")[0]
    if importlib.util.find_spec(_PACKAGE[grader]) is None:
        raise ValueError(
            f"grading these programs needs {grader}, which this environment lacks: {_HOW_TO_INSTALL[grader]}; it runs "
            "programs of the model, so use a container"
        )


def grade(
    name: str, texts: Mapping[Key, str], problems: Mapping[str, SuiteProblem], workers: int, timeout_s: float
) -> dict[Key, CodeGrade]:
    """Grade programs; see `grader_of` for the names.

    Raises:
        RuntimeError: the grader failed as a whole.
    """
    if name == TESTS:
        return _by_tests(texts, problems, workers, timeout_s)
    # The public graders do not tell code that was cut off from other code: it is not handed to them.
    programs = {key: last_code(text, closed_only=True) for key, text in texts.items()}
    with tempfile.TemporaryDirectory(prefix="grading-") as folder:
        if name == LIVECODEBENCH:
            return _livecodebench(programs, problems, Path(folder), workers, timeout_s)
        return _evalplus(name.partition("/")[2], programs, problems, Path(folder), workers)


def _by_tests(
    texts: Mapping[Key, str], problems: Mapping[str, SuiteProblem], workers: int, timeout_s: float
) -> dict[Key, CodeGrade]:
    """As the training reward, but with all tests of a problem, in order up to the first that fails."""
    options = code_grading.CodeRewardOptions(max_tests=None, timeout_s=max(1, round(timeout_s)))

    def graded(item: tuple[Key, str]) -> tuple[Key, CodeGrade]:
        key, text = item
        program = last_code(text)
        if not program:
            return key, CodeGrade(False, "", error="no program in the response")
        tests = code_tests.read(problems[key[0]].ground_truth)
        last = code_grading.grade(program, tests, options, stop_at_failure=True)[-1]
        is_timeout = last is code_grading.CodeVerdict.TIMEOUT
        outcome = pool.CallOutcome.TIMEOUT if is_timeout else pool.CallOutcome.DONE
        return key, CodeGrade(last is code_grading.CodeVerdict.PASSED, program, outcome)

    with ThreadPoolExecutor(workers) as threads:
        return dict(threads.map(graded, sorted(texts.items())))


def _evalplus(
    dataset: str, programs: Mapping[Key, str], problems: Mapping[str, SuiteProblem], folder: Path, workers: int
) -> dict[Key, CodeGrade]:
    """Base and extra tests have to pass. EvalPlus keeps the order of the programs for a task, and wants all tasks."""
    keys: dict[str, list[Key]] = defaultdict(list)
    for key in sorted(programs):
        keys[_task_id(problems[key[0]], dataset)].append(key)
    samples = folder / "samples.jsonl"
    solutions = [{"task_id": task, "solution": programs[key]} for task, members in keys.items() for key in members]
    files.write_lines(samples, solutions)
    command = ["-m", "evalplus.evaluate", "--dataset", dataset, "--samples", str(samples), "--parallel", str(workers)]
    results = folder / "samples_eval_results.json"
    _run_grader(command, "", results, "EvalPlus (it grades whole sets only: leave out --limit)")
    graded = json.loads(results.read_text(encoding="utf-8"))["eval"]
    grades = {}
    for task, members in keys.items():
        for key, result in zip(members, graded[task], strict=True):
            statuses = (result["base_status"], result["plus_status"])
            grades[key] = CodeGrade(
                statuses == ("pass", "pass"), programs[key], _outcome(statuses), _error(programs[key])
            )
    return grades


def _outcome(statuses: Sequence[str]) -> str:
    return pool.CallOutcome.TIMEOUT if "timeout" in statuses else pool.CallOutcome.DONE


def _error(program: str) -> str:
    return "" if program else "no closed Python block in the response"


def _task_id(problem: SuiteProblem, dataset: str) -> str:
    """EvalPlus's name of a task; MBPP+ on the hub has only its number."""
    for column in ("task_id", "id", "source_id"):
        if value := problem.extra_info.get(column):
            return str(value) if "/" in str(value) else f"{dataset.capitalize()}/{value}"
    raise ValueError(
        f"problem {problem.id} has no task_id in extra_info, by which EvalPlus knows it: prepare the set again"
    )


def _livecodebench(
    programs: Mapping[Key, str], problems: Mapping[str, SuiteProblem], folder: Path, workers: int, timeout_s: float
) -> dict[Key, CodeGrade]:
    """All tests have to pass. The tests come with the problem, in the form that LiveCodeBench reads."""
    keys: dict[str, list[Key]] = defaultdict(list)
    for key in sorted(programs):
        keys[key[0]].append(key)
    task: dict[str, Any] = {
        "tests": [problems[problem].ground_truth for problem in keys],
        "programs": [[programs[key] for key in members] for members in keys.values()],
        "workers": workers,
        "timeout_s": max(1, round(timeout_s)),
    }
    result = folder / "passed.json"
    _run_grader(["-c", _LIVECODEBENCH_SCRIPT, str(result)], json.dumps(task), result, "LiveCodeBench")
    passed = json.loads(result.read_text(encoding="utf-8"))
    return {
        key: CodeGrade(bool(is_right), programs[key], error=_error(programs[key]))
        for members, results in zip(keys.values(), passed, strict=True)
        for key, is_right in zip(members, results, strict=True)
    }


def _run_grader(arguments: Sequence[str], given: str, result: Path, name: str) -> None:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, cwd=result.parent, check=False)
    if done.returncode or not result.exists():
        raise RuntimeError(f"{name} failed with exit code {done.returncode}:\n{(done.stderr or done.stdout)[-2000:]}")
