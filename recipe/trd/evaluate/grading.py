"""Is a response right? One grader for each kind of problem; where grading fails, the sample counts as wrong.

To add a kind: `grader_of` names the grader of a problem, `grade` runs them all.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from recipe.trd.evaluate import answers, code_graders, pool
from recipe.trd.evaluate.store import Key
from recipe.trd.evaluate.suites import SuiteProblem
from recipe.trd.rewards import math_equality, math_reward

MATH = "math"


@dataclass(frozen=True)
class Grade:
    """The grade of one sample."""

    correct: bool
    pred: str
    """The answer that was graded; empty if there is none."""
    outcome: str
    """A `pool.CallOutcome`; unless it is `done`, the sample counts as wrong."""
    vote: int | None
    """Number of the answer among the different answers to the problem; 0 is the right one, None is no answer."""
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """Limits of grading: worker processes, and seconds for each grade."""

    workers: int
    timeout_s: float


def grader_of(problem: SuiteProblem) -> str:
    """Name of the grader that a problem needs.

    Raises:
        ValueError: there is none for its kind.
    """
    if problem.ability in code_graders.ABILITIES:
        return code_graders.grader_of(problem)
    if problem.ability in ("", MATH):
        return MATH
    raise ValueError(f"no grader for problems of ability {problem.ability!r}: math and code are known")


def check(problems: Sequence[SuiteProblem]) -> None:
    """Find out before sampling whether everything can be graded.

    Raises:
        ValueError: a grader is missing; the message says what to install.
    """
    for name in sorted({grader_of(problem) for problem in problems}):
        if name != MATH:
            code_graders.check_installed(name)
    for problem in problems:
        if grader_of(problem) == MATH and not isinstance(problem.ground_truth, str | int | float):
            raise ValueError(
                f"problem {problem.id}: the ground truth of mathematics must be text, not {problem.ground_truth!r}"
            )


def grade(texts: Mapping[Key, str], problems: Mapping[str, SuiteProblem], limits: Limits) -> dict[Key, Grade]:
    """Grade samples.

    Args:
        texts: sample to response.
        problems: by id.
        limits: worker processes and time.

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
                key: Grade(graded.correct, graded.program, graded.outcome, None, graded.error)
                for key, graded in code_graders.grade(name, part, problems, limits.workers, limits.timeout_s).items()
            }
    return grades


def grade_math(texts: Mapping[Key, str], problems: Mapping[str, SuiteProblem], limits: Limits) -> dict[Key, Grade]:
    """Grade by the last box, as the reward of training does, and group the answers to each problem.

    Each answer to a problem is compared once, however many samples gave it.
    """
    preds = {key: math_reward.last_boxed(text) for key, text in texts.items()}
    pairs = sorted({(key[0], pred) for key, pred in preds.items() if pred})
    calls = [(pred, str(problems[problem].ground_truth)) for problem, pred in pairs]
    results: dict[tuple[str, str], pool.CallResult] = {}
    for number, result in pool.run(math_equality.is_equal, calls, workers=limits.workers, timeout_s=limits.timeout_s):
        results[pairs[number]] = result
    votes = _votes(results, limits)
    grades = {}
    for key, pred in preds.items():
        if not pred:
            grades[key] = Grade(False, "", pool.CallOutcome.DONE, None)
            continue
        result = results[key[0], pred]
        grades[key] = Grade(bool(result.value), pred, result.outcome, votes[key[0], pred], result.error)
    return grades


def _votes(results: Mapping[tuple[str, str], pool.CallResult], limits: Limits) -> dict[tuple[str, str], int]:
    """Number of each answer to its problem: 0 for right ones; wrong ones share one where they are equal."""
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
        # Where math-verify gave no result, texts that differ are different answers.
        groups = result.value if result.outcome is pool.CallOutcome.DONE else range(len(preds))
        votes |= _numbered(hard[number], preds, groups)
    return votes


def _numbered(problem: str, preds: Sequence[str], groups: Iterable[int]) -> dict[tuple[str, str], int]:
    """Wrong answers count from 1."""
    return {(problem, pred): 1 + group for pred, group in zip(preds, groups, strict=True)}


def wrong_votes(grades: Sequence[Grade]) -> list[int]:
    """Votes for each wrong answer to a problem."""
    counts = Counter(grade.vote for grade in grades if grade.vote)
    return sorted(counts.values())
