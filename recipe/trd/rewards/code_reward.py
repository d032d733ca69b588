"""Reward of generated code: does it pass the tests of its problem? For verl's `reward.custom_reward_function`."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from recipe.trd.rewards import code_tests, sandbox
from recipe.trd.rewards.code_extraction import last_code
from recipe.trd.rewards.code_grading import CodeRewardOptions, CodeVerdict, grade

_VERLS_OWN = {"reward_router_address", "reward_model_tokenizer"}
"""Arguments that verl passes when it has a reward model as well."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | Mapping[str, Any],
    extra_info: Mapping[str, object] | None = None,
    **kwargs: Any,
) -> dict[str, float | str]:
    """Score of one solution; signature and result are verl's.

    Args:
        data_source: for messages only; the rule is the same for all data.
        solution_str: the decoded response.
        ground_truth: the tests, in one of the shapes of `code_tests`; as JSON or as a mapping.
        extra_info: for messages only.
        kwargs: fields of `CodeRewardOptions`.

    Returns:
        score: 1.0 or 0.0, or the fraction of the tests that passed; `CodeRewardOptions.score` says which.
        acc: 1.0 if all tests passed, else 0.0; under this name verl averages it in validation.
        pred: the code; empty if there is none.
        fraction: of the chosen tests, those that passed. Tests after a timeout are not run and count as not passed:
            code that hangs costs one time limit, not one for each test.
        num_tests: number of chosen tests.
        verdict: a `CodeVerdict`; and for each kind of failure 1.0 or 0.0 under its own name, for averages.

    Raises:
        TypeError, ValueError: unknown or impossible options, tests that cannot be read.
        SandboxError: code cannot be run.
    """
    options = _options(kwargs)
    try:
        tests = code_tests.read(ground_truth).limited(options.max_tests)
    except ValueError as error:
        raise ValueError(f"{data_source} {dict(extra_info or {}).get('index', '')}: {error}") from error
    code = last_code(solution_str)
    verdicts = grade(code, tests, options) if code else []
    fraction = sum(verdict is CodeVerdict.PASSED for verdict in verdicts) / len(tests.cases)
    failed = next((verdict for verdict in verdicts if verdict is not CodeVerdict.PASSED), CodeVerdict.PASSED)
    verdict = failed if code else CodeVerdict.NO_PROGRAM
    acc = float(verdict is CodeVerdict.PASSED)
    return {
        "score": acc if options.score == "all" else fraction,
        "acc": acc,
        "pred": code,
        "fraction": fraction,
        "num_tests": float(len(tests.cases)),
        "verdict": str(verdict),
        **{str(kind): float(verdict is kind) for kind in CodeVerdict if kind is not CodeVerdict.PASSED},
    }


def check(**kwargs: Any) -> None:
    """Run trivial code as `compute_score` would, once, before a run depends on it.

    Args:
        kwargs: fields of `CodeRewardOptions`.

    Raises:
        TypeError, ValueError: unknown or impossible options.
        SandboxError: code cannot be run, or not within these limits.
    """
    options = _options(kwargs)
    if not options.sandbox_fusion_url:
        # Knows better than a verdict why nothing runs.
        sandbox.check()
    tests = code_tests.read({"inputs": ["works"], "outputs": ["works"]})
    (verdict,) = grade("print(input())", tests, options)
    if verdict is not CodeVerdict.PASSED:
        raise sandbox.SandboxError(
            f"a program that prints one line got the verdict {verdict} with timeout_s={options.timeout_s} and "
            f"memory_mb={options.memory_mb} of data.reward_kwargs"
        )


def _options(kwargs: Mapping[str, Any]) -> CodeRewardOptions:
    return _made(tuple(sorted((key, value) for key, value in kwargs.items() if key not in _VERLS_OWN)))


@cache
def _made(items: tuple[tuple[str, Any], ...]) -> CodeRewardOptions:
    return CodeRewardOptions(**dict(items))
