"""Reward of a program: does it pass the tests of its problem? For verl's `reward.custom_reward_function`.

Programs run in `sandbox.py` on the machine of the reward worker, or in verl's Sandbox Fusion where a URL is given. Both
ways the output is compared here, so that they give the same verdict.
"""

import logging
import os
import re
import textwrap
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Literal

from recipe.trd.rewards import code_tests, sandbox
from recipe.trd.rewards.code_tests import ProgramTests

logger = logging.getLogger(__name__)

_FENCE = re.compile(r"[ \t]*(```+|~~~+)[ \t]*([^\s`]*)[^`]*")
_PYTHON = {"python", "python3", "py", "py3"}
_CODE_LINE = re.compile(r"^(import |from \w+(\.\w+)* import |def \w+\(|class \w+|print\(|\w+ *= *\S)", re.MULTILINE)

_WALL_FACTOR = 4
"""Programs share processors with other work; a program that waits, and does not compute, is ended by wall time."""

_VERLS_OWN = {"reward_router_address", "reward_model_tokenizer"}
"""Arguments that verl passes when it has a reward model as well."""

_FUSION_OUTCOMES = {
    "success": sandbox.Outcome.DONE,
    "timeout": sandbox.Outcome.TIMEOUT,
    "compile_timeout": sandbox.Outcome.TIMEOUT,
    "runtime_error": sandbox.Outcome.CRASH,
    "compile_error": sandbox.Outcome.CRASH,
    "compile_error_skipped": sandbox.Outcome.CRASH,
}
"""verl's words for how a run ended; all others mean that the service did not run it."""

_ATTEMPTS, _PAUSE_S = 3, 2.0
"""verl's client itself repeats requests that the service has no room for."""

# More programs at a time than processors make each of them slower, and none of them earlier.
_slots = threading.BoundedSemaphore(os.cpu_count() or 1)


class Verdict(StrEnum):
    """What became of a program: it passed all tests, or what happened at the first one that it did not pass."""

    PASSED = "passed"
    WRONG = "wrong"
    TIMEOUT = "timeout"
    CRASH = "crash"
    NO_PROGRAM = "no_program"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `reward.custom_reward_function.reward_kwargs` may say."""

    max_tests: int | None = 20
    """Tests that are run of each problem, spread over all of them; None for all."""
    timeout_s: int = 10
    """Processor time of a program on one test; its wall time is four times that."""
    memory_mb: int = 1024
    """Address space of a program."""
    tolerance: float = 1e-6
    """By which decimal numbers may be off, absolutely or relatively."""
    score: Literal["all", "fraction"] = "all"
    """1 for a program that passes all tests, else 0; or the fraction that it passes."""
    sandbox_fusion_url: str | None = None
    """Address of verl's Sandbox Fusion, `http://host:port/run_code`; None runs programs here."""
    sandbox_fusion_max_concurrent: int = 64
    """Requests at a time, of each reward worker."""

    def __post_init__(self) -> None:
        for name in ("max_tests", "timeout_s", "memory_mb", "sandbox_fusion_max_concurrent"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"reward_kwargs.{name}={value!r} must be a whole number of at least 1")
        if not isinstance(self.tolerance, int | float) or self.tolerance < 0:
            raise ValueError(f"reward_kwargs.tolerance={self.tolerance!r} must be a number of at least 0")
        if self.score not in ("all", "fraction"):
            raise ValueError(f"reward_kwargs.score={self.score!r} must be all or fraction")


@dataclass(frozen=True)
class Run:
    """A program on one test: how it ended, and what it printed."""

    outcome: sandbox.Outcome
    stdout: str = ""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | Mapping[str, Any],
    extra_info: Mapping[str, object] | None = None,
    **kwargs: Any,
) -> dict[str, float | str]:
    """Score of one solution; signature and result are verl's.

    Args:
        data_source: for messages alone; the rule is the same for all data.
        solution_str: the decoded response.
        ground_truth: the tests, in one of the shapes of `program_tests`; as JSON or as a mapping.
        extra_info: for messages alone.
        kwargs: fields of `Options`.

    Returns:
        score: 1.0 or 0.0, or the fraction of the tests that passed; `Options.score` says which.
        acc: 1.0 if all tests passed, else 0.0; under this name verl averages it in validation.
        pred: the program; empty if there is none.
        fraction: of the tests that were chosen, those that passed. Tests behind a timeout are not run and count as not
            passed: a program that hangs costs one time limit, not one for each test.
        num_tests: tests that were chosen.
        verdict: a `Verdict`; and for each kind of failure 1.0 or 0.0 under its own name, for averages.

    Raises:
        TypeError, ValueError: unknown or impossible options, tests that cannot be read.
        SandboxError: programs cannot be run.
    """
    options = _options(kwargs)
    try:
        tests = code_tests.read(ground_truth).limited(options.max_tests)
    except ValueError as error:
        raise ValueError(f"{data_source} {dict(extra_info or {}).get('index', '')}: {error}") from error
    program = last_program(solution_str)
    verdicts = grade(program, tests, options) if program else []
    fraction = sum(verdict is Verdict.PASSED for verdict in verdicts) / len(tests.cases)
    failed = next((verdict for verdict in verdicts if verdict is not Verdict.PASSED), Verdict.PASSED)
    verdict = failed if program else Verdict.NO_PROGRAM
    acc = float(verdict is Verdict.PASSED)
    return {
        "score": acc if options.score == "all" else fraction,
        "acc": acc,
        "pred": program,
        "fraction": fraction,
        "num_tests": float(len(tests.cases)),
        "verdict": str(verdict),
        **{str(kind): float(verdict is kind) for kind in Verdict if kind is not Verdict.PASSED},
    }


def check(**kwargs: Any) -> None:
    """Run a trivial program as `compute_score` would, once, before a run depends on it.

    Args:
        kwargs: fields of `Options`.

    Raises:
        TypeError, ValueError: unknown or impossible options.
        SandboxError: programs cannot be run, or not within these limits.
    """
    options = _options(kwargs)
    if not options.sandbox_fusion_url:
        # Knows better than a verdict why nothing runs.
        sandbox.check()
    tests = code_tests.read({"inputs": ["works"], "outputs": ["works"]})
    (verdict,) = grade("print(input())", tests, options)
    if verdict is not Verdict.PASSED:
        raise sandbox.SandboxError(
            f"a program that prints one line got the verdict {verdict} with timeout_s={options.timeout_s} and "
            f"memory_mb={options.memory_mb} of data.reward_kwargs"
        )


def _options(kwargs: Mapping[str, Any]) -> Options:
    return _made(tuple(sorted((key, value) for key, value in kwargs.items() if key not in _VERLS_OWN)))


@cache
def _made(items: tuple[tuple[str, Any], ...]) -> Options:
    return Options(**dict(items))


def last_program(text: str) -> str:
    """The program of a response; empty if there is none.

    It is the last fenced block that is marked as Python, else the last that is not marked, without the indentation that
    the block as a whole has. A block whose fence does not close ends with the response: whether it was cut off shows
    when it runs. A response without any fence is a program as a whole if a line of it, behind a closed `</think>`,
    looks like one.
    """
    blocks = _blocks(text)
    for languages in (_PYTHON, {""}):
        found = [code for language, code in blocks if language in languages]
        if found:
            return textwrap.dedent(found[-1]).strip("\n")
    answer = text.rpartition("</think>")[2]
    return answer.strip() if not blocks and _CODE_LINE.search(answer) else ""


def _blocks(text: str) -> list[tuple[str, str]]:
    """Language, in lower case, and content of all fenced blocks."""
    blocks: list[tuple[str, list[str]]] = []
    fence = ""
    for line in text.replace("\r\n", "\n").split("\n"):
        mark = _FENCE.fullmatch(line)
        if fence and mark and mark[1].startswith(fence) and not mark[2]:
            fence = ""
        elif mark and (not fence or (mark[1] == fence and mark[2].lower() in _PYTHON)):
            # Within an open block, this is the next one: the end of the other was forgotten.
            fence = mark[1]
            blocks.append((mark[2].lower(), []))
        elif fence:
            blocks[-1][1].append(line)
    return [(language, "\n".join(lines)) for language, lines in blocks]


def grade(program: str, tests: ProgramTests, options: Options, *, stop_at_failure: bool = False) -> list[Verdict]:
    """Verdict on each test, in order; ends behind the first timeout, or behind the first test that does not pass.

    Raises:
        SandboxError: programs cannot be run.
    """
    source = tests.source(program)
    if options.sandbox_fusion_url:
        # The service runs all of them at once.
        runs: Iterable[Run] = _run_remotely(source, [case.stdin for case in tests.cases], options)
    else:
        runs = (_run_here(source, case.stdin, options) for case in tests.cases)
    verdicts = []
    for case, run in zip(tests.cases, runs, strict=False):
        if run.outcome is sandbox.Outcome.DONE:
            right = tests.is_right(case, run.stdout, options.tolerance)
            verdicts.append(Verdict.PASSED if right else Verdict.WRONG)
        else:
            verdicts.append(Verdict(run.outcome.value))
        if verdicts[-1] is Verdict.TIMEOUT or (stop_at_failure and verdicts[-1] is not Verdict.PASSED):
            break
    return verdicts


def _run_here(source: str, stdin: str, options: Options) -> Run:
    limits = sandbox.Limits(
        cpu_s=options.timeout_s, wall_s=_WALL_FACTOR * options.timeout_s, memory_mb=options.memory_mb
    )
    with _slots:
        result = sandbox.run(source, stdin, limits)
    _say_which_fences(result.layers)
    return Run(result.outcome, result.stdout)


@cache
def _say_which_fences(layers: tuple[str, ...]) -> None:
    missing = [layer for layer in sandbox.LAYERS if layer not in layers]
    if missing:
        logger.warning(
            "Programs run without %s, which this machine does not allow; %s hold. See recipe/trd/rewards/sandbox.py.",
            " and ".join(missing),
            " and ".join(layers),
        )


@cache
def _requests(max_concurrent: int) -> threading.Semaphore:
    return threading.BoundedSemaphore(max_concurrent)


def _run_remotely(source: str, stdins: Sequence[str], options: Options) -> list[Run]:
    """Programs in verl's Sandbox Fusion, through verl's own client."""
    runs: dict[int, Run] = {}
    answer: Mapping[str, Any] = {}
    for attempt in range(_ATTEMPTS):
        todo = [number for number in range(len(stdins)) if number not in runs]
        if todo and attempt:
            time.sleep(_PAUSE_S * attempt)
        for number, answer in zip(todo, _answers(source, [stdins[number] for number in todo], options), strict=True):
            if answer["status"] in _FUSION_OUTCOMES:
                runs[number] = Run(_FUSION_OUTCOMES[answer["status"]], answer["stdout"] or "")
    if len(runs) < len(stdins):
        # Counted as wrong, these would be wrong rewards.
        raise sandbox.SandboxError(
            f"{options.sandbox_fusion_url} gave no result for {len(stdins) - len(runs)} of {len(stdins)} runs of a "
            f"program in {_ATTEMPTS} attempts: {answer.get('api_request_error') or answer.get('status')}"
        )
    return [runs[number] for number in range(len(stdins))]


def _answers(source: str, stdins: Sequence[str], options: Options) -> Sequence[Mapping[str, Any]]:
    if not stdins:
        return []
    from verl.utils.reward_score.sandbox_fusion.utils import check_correctness

    assert options.sandbox_fusion_url
    _, answers = check_correctness(
        sandbox_fusion_url=options.sandbox_fusion_url,
        # Nothing to compare with: the outputs are compared here.
        in_outs={"inputs": list(stdins), "outputs": [None] * len(stdins)},
        generation=source,
        timeout=options.timeout_s,
        memory_limit_mb=options.memory_mb,
        concurrent_semaphore=_requests(options.sandbox_fusion_max_concurrent),
    )
    return list(answers)
