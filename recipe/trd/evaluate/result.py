"""`result.json`: the numbers of an evaluation. Fractions are in [0, 1], lengths in tokens."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipe.trd.evaluate import estimators, grading, pool, tables
from recipe.trd.evaluate.store import Key
from recipe.trd.evaluate.suites import ProblemSet

FILE = "result.json"

_QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}


def read(folder: Path) -> dict[str, Any]:
    """The result of an evaluation.

    Raises:
        ValueError: the folder holds none.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {FILE}: no evaluation was finished there")
    result = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(result, dict)
    return result


def default_ks(num_samples: int) -> list[int]:
    """Powers of two up to the number of samples, and that number."""
    return sorted({2**power for power in range(1, num_samples.bit_length()) if 2**power <= num_samples} | {num_samples})


def of_set(
    problem_set: ProblemSet,
    samples: Mapping[Key, Mapping[str, Any]],
    grades: Mapping[Key, grading.Grade],
    *,
    ks: Sequence[int],
    seed: int,
) -> dict[str, Any]:
    """Numbers of one problem set.

    Args:
        problem_set: the problems.
        samples: all samples as they were stored, equally many for each problem.
        grades: of the same samples.
        ks: of pass@k and maj@k.
        seed: of the bootstrap.
    """
    by_problem: dict[str, list[grading.Grade]] = defaultdict(list)
    for key in sorted(grades):
        by_problem[key[0]].append(grades[key])
    # Generated code has no answers to vote on.
    can_vote = all(grading.grader_of(problem) == grading.MATH for problem in problem_set.problems)
    problems = {problem.id: _counts(by_problem[problem.id], can_vote=can_vote) for problem in problem_set.problems}
    outcomes = Counter(grade.outcome for grade in grades.values())
    lengths = np.array([sample["num_tokens"] for sample in samples.values()])
    reasons = Counter(sample["finish_reason"] for sample in samples.values())
    return {
        "name": problem_set.name,
        "num_problems": len(problems),
        "num_samples": len(grades) // len(problems),
        **estimates([list(problems.values())], ks=ks, seed=seed),
        "truncated_frac": reasons["length"] / len(samples),
        "finish_reasons": dict(reasons),
        "no_answer_frac": sum(not grade.pred for grade in grades.values()) / len(grades),
        "failed_grades": {name: outcomes[name] for name in (pool.CallOutcome.TIMEOUT, pool.CallOutcome.CRASHED)},
        "response_tokens": {
            "total": int(lengths.sum()),
            "mean": float(lengths.mean()),
            **{name: float(np.quantile(lengths, quantile)) for name, quantile in _QUANTILES.items()},
        },
        "prompt_tokens": int(sum(sample["num_prompt_tokens"] for sample in samples.values())),
        "problems": problems,
    }


def _counts(grades: Sequence[grading.Grade], *, can_vote: bool) -> dict[str, Any]:
    """The counts of one problem, which all estimators are computed from."""
    return {
        "samples": len(grades),
        "right": sum(grade.correct for grade in grades),
        "wrong_votes": grading.wrong_votes(grades) if can_vote else None,
    }


def _values(problems: Sequence[Mapping[str, Any]], metric: str) -> np.ndarray:
    """Value of every problem.

    Args:
        problems: counts, as `problems` of a result holds them.
        metric: `avg`, `pass@<k>` or `maj@<k>`.
    """
    name, _, k = metric.partition("@")
    if name == "avg":
        return np.array([counts["right"] / counts["samples"] for counts in problems])
    if name == "pass":
        return np.array([estimators.pass_at_k(counts["samples"], counts["right"], int(k)) for counts in problems])
    return np.array(
        [
            estimators.majority_at_k(counts["samples"], counts["right"], counts["wrong_votes"], int(k))
            for counts in problems
        ]
    )


def _metrics(ks: Sequence[int], *, can_vote: bool) -> list[str]:
    """Names of all metrics."""
    return ["avg", *(f"pass@{k}" for k in ks), *(f"maj@{k}" for k in ks if can_vote)]


def _has_votes(problems: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there are answers to vote on."""
    return all(counts["wrong_votes"] is not None for counts in problems)


def estimates(sets: Sequence[Sequence[Mapping[str, Any]]], *, ks: Sequence[int], seed: int) -> dict[str, Any]:
    """Every metric with its interval: of one set, or the mean of several."""
    names = _metrics(ks, can_vote=all(map(_has_votes, sets)))
    return {
        "metrics": {
            name: tables.plain(estimators.stratified_interval([_values(part, name) for part in sets], seed=seed))
            for name in names
        }
    }


def paired(result: Mapping[str, Any], baseline: Mapping[str, Any], *, seed: int) -> dict[str, dict[str, Any]]:
    """Differences between two results, problem by problem, for each set that both have.

    Args:
        result: of an evaluation.
        baseline: the result of another one.
        seed: of the bootstrap.

    Returns:
        Name of the set to its metrics: value, low, high, and for `avg` the p-value of no difference.

    Raises:
        ValueError: they have no set in common, or one with other problems or another number of samples.
    """
    sets, baseline_sets = ({part["name"]: part for part in side["sets"]} for side in (result, baseline))
    common = [name for name in sets if name in baseline_sets]
    if not common:
        raise ValueError(f"no problem set in common: {', '.join(sets)} and {', '.join(baseline_sets)}")
    return {name: _paired_set(sets[name], baseline_sets[name], seed=seed) for name in common}


def check_pairs(name: str, samples: Mapping[str, int], baseline: Mapping[str, int]) -> None:
    """Refuse a paired comparison of different problems.

    Args:
        name: of the set.
        samples: problem to its number of samples.
        baseline: the same for the baseline.

    Raises:
        ValueError: problems or numbers of samples differ; the message says how.
    """
    if samples.keys() != baseline.keys():
        only = [len(samples.keys() - baseline.keys()), len(baseline.keys() - samples.keys())]
        raise ValueError(
            f"{name}: the two runs were not asked the same problems ({only[0]} only here, {only[1]} only in the "
            "baseline), so they cannot be paired: evaluate both on the same file"
        )
    if dict(samples) != dict(baseline):
        counts = [sorted(set(side.values())) for side in (samples, baseline)]
        raise ValueError(
            f"{name}: {counts[0]} samples a problem here and {counts[1]} in the baseline; "
            "give both the same --num-samples"
        )


def _paired_set(part: Mapping[str, Any], baseline: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    sides = [part["problems"], baseline["problems"]]
    num_samples = [{problem: counts["samples"] for problem, counts in side.items()} for side in sides]
    check_pairs(part["name"], *num_samples)
    pairs = [[side[problem] for problem in sides[0]] for side in sides]
    differences = {}
    for name in part["metrics"]:
        if name in baseline["metrics"]:
            change = _values(pairs[0], name) - _values(pairs[1], name)
            differences[name] = tables.plain(estimators.difference_interval(change, seed=seed))
    right = [one["right"] - other["right"] for one, other in zip(*pairs, strict=True)]
    differences["avg"] |= {
        "p_value": estimators.sign_flip_p_value(right),
        "num_better": sum(change > 0 for change in right),
        "num_worse": sum(change < 0 for change in right),
    }
    return differences
