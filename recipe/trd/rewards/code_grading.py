"""Runs code on the tests of its problem, in the sandbox here or in verl's Sandbox Fusion, and grades each test.

Both ways the output is compared here, so that they give the same verdict.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Literal

from recipe.trd.rewards import sandbox
from recipe.trd.rewards.code_tests import CodeTests

logger = logging.getLogger(__name__)

_WALL_FACTOR = 4
"""Code shares processors with other work; code that waits, and does not compute, is ended by wall time."""

_FUSION_OUTCOMES = {
    "success": sandbox.SandboxOutcome.DONE,
    "timeout": sandbox.SandboxOutcome.TIMEOUT,
    "compile_timeout": sandbox.SandboxOutcome.TIMEOUT,
    "runtime_error": sandbox.SandboxOutcome.CRASH,
    "compile_error": sandbox.SandboxOutcome.CRASH,
    "compile_error_skipped": sandbox.SandboxOutcome.CRASH,
}
"""verl's words for how a run ended; all others mean that the service did not run it."""

_ATTEMPTS, _PAUSE_S = 3, 2.0
"""verl's client itself repeats requests that the service has no room for."""

# More runs at a time than processors make each of them slower, and none of them earlier.
_slots = threading.BoundedSemaphore(os.cpu_count() or 1)


class CodeVerdict(StrEnum):
    """What became of the code of a response: it passed all tests, or how it failed the first that it did not pass."""

    PASSED = "passed"
    WRONG = "wrong"
    TIMEOUT = "timeout"
    CRASH = "crash"
    NO_PROGRAM = "no_program"


@dataclass(frozen=True, kw_only=True)
class CodeRewardOptions:
    """Fields of `reward.custom_reward_function.reward_kwargs`; `data=taco` has the same defaults."""

    max_tests: int | None = 20
    """Tests that are run for each problem, spread over all of them; None for all."""
    timeout_s: int = 10
    """Processor time of the code on one test; its wall time is four times that."""
    memory_mb: int = 1024
    """Address space of the code."""
    tolerance: float = 1e-6
    """By which decimal numbers may be off, absolutely or relatively."""
    score: Literal["all", "fraction"] = "all"
    """1 for code that passes all tests, else 0; or the fraction that it passes."""
    sandbox_fusion_url: str | None = None
    """Address of verl's Sandbox Fusion, `http://host:port/run_code`; None runs code here."""
    sandbox_fusion_max_concurrent: int = 64
    """Requests of each reward worker at a time."""

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
class CaseResult:
    """What code did on one test: how it ended, and what it printed."""

    outcome: sandbox.SandboxOutcome
    stdout: str = ""


def grade(
    code: str, tests: CodeTests, options: CodeRewardOptions, *, stop_at_failure: bool = False
) -> list[CodeVerdict]:
    """Verdict on each test, in order; ends after the first timeout, or after the first test that does not pass.

    Raises:
        SandboxError: code cannot be run.
    """
    source = tests.source(code)
    if options.sandbox_fusion_url:
        # The service runs all of them at once.
        runs: Iterable[CaseResult] = _run_remotely(source, [case.stdin for case in tests.cases], options)
    else:
        runs = (_run_here(source, case.stdin, options) for case in tests.cases)
    verdicts = []
    for case, run in zip(tests.cases, runs, strict=False):
        if run.outcome is sandbox.SandboxOutcome.DONE:
            right = tests.is_right(case, run.stdout, options.tolerance)
            verdicts.append(CodeVerdict.PASSED if right else CodeVerdict.WRONG)
        else:
            verdicts.append(CodeVerdict(run.outcome.value))
        if verdicts[-1] is CodeVerdict.TIMEOUT or (stop_at_failure and verdicts[-1] is not CodeVerdict.PASSED):
            break
    return verdicts


def _run_here(source: str, stdin: str, options: CodeRewardOptions) -> CaseResult:
    limits = sandbox.SandboxLimits(
        cpu_s=options.timeout_s, wall_s=_WALL_FACTOR * options.timeout_s, memory_mb=options.memory_mb
    )
    with _slots:
        result = sandbox.run(source, stdin, limits)
    _warn_of_missing_layers(result.layers)
    return CaseResult(result.outcome, result.stdout)


@cache
def _warn_of_missing_layers(layers: tuple[str, ...]) -> None:
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


def _run_remotely(source: str, stdins: Sequence[str], options: CodeRewardOptions) -> list[CaseResult]:
    """Run in verl's Sandbox Fusion, through verl's own client."""
    runs: dict[int, CaseResult] = {}
    answer: Mapping[str, Any] = {}
    for attempt in range(_ATTEMPTS):
        todo = [number for number in range(len(stdins)) if number not in runs]
        if todo and attempt:
            time.sleep(_PAUSE_S * attempt)
        for number, answer in zip(todo, _answers(source, [stdins[number] for number in todo], options), strict=True):
            if answer["status"] in _FUSION_OUTCOMES:
                runs[number] = CaseResult(_FUSION_OUTCOMES[answer["status"]], answer["stdout"] or "")
    if len(runs) < len(stdins):
        # Counted as wrong, these would be wrong rewards.
        raise sandbox.SandboxError(
            f"{options.sandbox_fusion_url} gave no result for {len(stdins) - len(runs)} of {len(stdins)} runs of a "
            f"program in {_ATTEMPTS} attempts: {answer.get('api_request_error') or answer.get('status')}"
        )
    return [runs[number] for number in range(len(stdins))]


def _answers(source: str, stdins: Sequence[str], options: CodeRewardOptions) -> Sequence[Mapping[str, Any]]:
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
