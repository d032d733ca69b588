"""Finds training problems that are evaluation problems, by runs of words that both contain.

A training problem is contaminated by an evaluation problem if

- their words are the same, whatever the signs between them; or
- the evaluation problem has at least `ngram` words, and the runs of `ngram` words that both have in common cover at
  least `min_overlap` of the evaluation problem's words.

Runs that more than four evaluation problems share are stock phrases ("where m and n are relatively prime positive
integers. Find m + n."): they do not count, nor do words that are in no other run. Without this rule, and without a
minimum share, every training problem in the style of a competition would be removed.

Runs of 13 words are the filter of GPT-3 (arXiv 2005.14165, appendix C); share and limit were chosen here.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from recipe.trd.data.normalise import words

_MAX_SHARING = 4


@dataclass(frozen=True)
class EvaluationProblem:
    """A problem that must not be trained on."""

    set: str
    id: str
    problem: str


@dataclass(frozen=True)
class Match:
    """The evaluation problem that a training problem is most like."""

    set: str
    id: str
    overlap: float
    """Share of the evaluation problem's own words that both have in common, in [0, 1]."""


class EvaluationIndex:
    """Evaluation problems by their runs of words."""

    def __init__(self, problems: Iterable[EvaluationProblem], *, ngram: int, min_overlap: float) -> None:
        self._ngram, self._min_overlap = ngram, min_overlap
        # By its words, so that a problem which several sets have is one problem.
        self._problems: dict[tuple[str, ...], EvaluationProblem] = {}
        for problem in problems:
            self._problems.setdefault(words(problem.problem), problem)
        runs: dict[tuple[str, ...], list[tuple[tuple[str, ...], int]]] = defaultdict(list)
        for spelled in self._problems:
            for start, run in self._runs_of(spelled):
                runs[run].append((spelled, start))
        self._runs = {run: at for run, at in runs.items() if len({spelled for spelled, _ in at}) <= _MAX_SHARING}
        self._num_own = {spelled: len(self._covered(spelled)[spelled]) for spelled in self._problems}

    def _runs_of(self, spelled: tuple[str, ...]) -> Iterable[tuple[int, tuple[str, ...]]]:
        return ((start, spelled[start : start + self._ngram]) for start in range(len(spelled) - self._ngram + 1))

    def _covered(self, spelled: tuple[str, ...]) -> dict[tuple[str, ...], set[int]]:
        """Evaluation problems that share runs with these words, and which of their words those cover."""
        covered: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for _, run in self._runs_of(spelled):
            for evaluation, start in self._runs.get(run, ()):
                covered[evaluation].update(range(start, start + self._ngram))
        return covered

    def match(self, problem: str) -> Match | None:
        """The evaluation problem that contaminates this one, the most alike if there are several; None if none does."""
        spelled = words(problem)
        # Texts without a single word would all be equal.
        if spelled and spelled in self._problems:
            return Match(self._problems[spelled].set, self._problems[spelled].id, 1.0)
        shares = {other: len(own) / self._num_own[other] for other, own in self._covered(spelled).items()}
        if not shares:
            return None
        most = max(shares, key=lambda other: shares[other])
        if shares[most] < self._min_overlap:
            return None
        return Match(self._problems[most].set, self._problems[most].id, round(shares[most], 3))
