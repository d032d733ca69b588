"""Is a response right? One grader for each kind of problem; a grade that fails is counted as wrong, and said.

The seam for further kinds: `grader_of` names the grader of a problem, `grade` runs them all.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from recipe.trd.evaluate import answers, code, pool
from recipe.trd.evaluate.store import Key
from recipe.trd.evaluate.suites import Problem
from recipe.trd.rewards import math_reward

MATH = "math"


@dataclass(frozen=True)
class Grade:
    """The verdict on one sample."""

    correct: bool
    pred: str
    """The answer that was graded; empty if there is none."""
    outcome: str
    """A `pool.Outcome`: where it is not `done`, the sample counts as wrong."""
    vote: int | None
    """Number of the answer among those to the problem: 0 is right, equal answers are equal; None is no answer."""
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """What grading may cost."""

    workers: int
    timeout_s: float


def grader_of(problem: Problem) -> str:
    """Name of the grader that a problem needs.

    Raises:
        ValueError: there is none for its kind.
    """
    if problem.ability in code.ABILITIES:
        return code.grader_of(problem)
    if problem.ability in ("", MATH):
        return MATH
    raise ValueError(f"no grader for problems of ability {problem.ability!r}: math and code are known")


def check(problems: Sequence[Problem]) -> None:
    """Find out before sampling whether everything can be graded.

    Raises:
        ValueError: a grader is missing; the message says what to install.
    """
    for name in sorted({grader_of(problem) for problem in problems}):
        if name != MATH:
            code.check_installed(name)
    for problem in problems:
        if grader_of(problem) == MATH and not isinstance(problem.ground_truth, str | int | float):
            raise ValueError(
                f"problem {problem.id}: the ground truth of mathematics must be text, not {problem.ground_truth!r}"
            )


def grade(texts: Mapping[Key, str], problems: Mapping[str, Problem], limits: Limits) -> dict[Key, Grade]:
    """Grade samples.

    Args:
        texts: sample to response.
        problems: by id.
        limits: what it may cost.

    Returns:
        A grade for each sample.
    """
    by_grader: dict[str, dict[Key, str]] = defaultdict(dict)
    for key, text in texts.items():
        by_grader[grader_of(problems[key[0]])][key] = text
    grades: dict[Key, Grade] = {}
    for name, part in by_grader.items():
        if name == MATH:
            grades |= grade_math(part, problems, limits)
        else:
            grades |= {
                key: Grade(verdict.correct, verdict.program, verdict.outcome, None, verdict.error)
                for key, verdict in code.grade(name, part, problems, limits.workers, limits.timeout_s).items()
            }
    return grades


def grade_math(texts: Mapping[Key, str], problems: Mapping[str, Problem], limits: Limits) -> dict[Key, Grade]:
    """Grade by the last box, as the reward of training does, and group the answers to each problem.

    Each answer to a problem is compared once, however many samples gave it.
    """
    preds = {key: math_reward.last_boxed(text) for key, text in texts.items()}
    pairs = sorted({(key[0], pred) for key, pred in preds.items() if pred})
    calls = [(pred, str(problems[problem].ground_truth)) for problem, pred in pairs]
    results: dict[tuple[str, str], pool.Result] = {}
    for number, result in pool.run(math_reward.is_equal, calls, workers=limits.workers, timeout_s=limits.timeout_s):
        results[pairs[number]] = result
    votes = _votes(results, limits)
    grades = {}
    for key, pred in preds.items():
        if not pred:
            grades[key] = Grade(False, "", pool.Outcome.DONE, None)
            continue
        result = results[key[0], pred]
        grades[key] = Grade(bool(result.value), pred, result.outcome, votes[key[0], pred], result.error)
    return grades


def _votes(results: Mapping[tuple[str, str], pool.Result], limits: Limits) -> dict[tuple[str, str], int]:
    """Number of each answer to its problem: 0 for right ones; wrong ones are equal as texts, or as mathematics."""
    wrong: dict[str, list[str]] = defaultdict(list)
    votes = {}
    for (problem, pred), result in results.items():
        if result.value:
            votes[problem, pred] = 0
        else:
            wrong[problem].append(pred)
    hard = []
    for problem, preds in wrong.items():
        preds.sort()
        if answers.is_easy(preds):
            votes |= _numbered(problem, preds, answers.group(preds))
        else:
            hard.append(problem)
    # Every pair may cost as much as a grade.
    timeout_s = limits.timeout_s * max([1, *(len(wrong[problem]) for problem in hard)])
    calls = [(wrong[problem],) for problem in hard]
    for number, result in pool.run(answers.group, calls, workers=limits.workers, timeout_s=timeout_s):
        preds = wrong[hard[number]]
        # Without a word from math-verify, texts that differ are different answers.
        groups = result.value if result.outcome is pool.Outcome.DONE else range(len(preds))
        votes |= _numbered(hard[number], preds, groups)
    return votes


def _numbered(problem: str, preds: Sequence[str], groups: Iterable[int]) -> dict[tuple[str, str], int]:
    """Wrong answers count from 1."""
    return {(problem, pred): 1 + group for pred, group in zip(preds, groups, strict=True)}


def wrong_votes(grades: Sequence[Grade]) -> list[int]:
    """Votes for each wrong answer to a problem."""
    counts = Counter(grade.vote for grade in grades if grade.vote)
    return sorted(counts.values())
