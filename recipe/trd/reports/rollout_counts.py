"""What rewriting did, counted over the dumped training samples of a run."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.trd.reports import run_folder
from recipe.trd.reports.run_reader import RunReader, is_finite_number
from recipe.trd.rewrite.verdict import Verdict

_NUM_EXAMPLES = 3
_EXAMPLE_KEYS = ("step", "x", "y_o", "y_r", "ground_truth", "y_o_acc", "y_r_acc", "verdict", "trained_on")


@dataclass
class RolloutCounts:
    """Counts over all training samples, and a few to show. Samples are read one by one: there may be gigabytes."""

    samples_by_step: Counter[int] = field(default_factory=Counter)
    _verdicts: Counter[str] = field(default_factory=Counter)
    _y_o_right: float = 0.0
    _y_r_right: float = 0.0
    _changes: Counter[str] = field(default_factory=Counter)
    # Rank to the latest samples of that rank by prompt: 0 wrong made right, 1 trained on, 2 any rewrite.
    _candidates: dict[int, dict[str, dict[str, Any]]] = field(default_factory=lambda: {0: {}, 1: {}, 2: {}})

    @classmethod
    def read(cls, reader: RunReader, folder: Path) -> "RolloutCounts":
        """Read `<folder>/<step>.jsonl`: dumped by `rollout_dump`, or by verl, which knows nothing of rewriting."""
        counts = cls()
        for path in run_folder.numbered(folder, pattern="*.jsonl"):
            for sample in reader.read_lines(path):
                counts.samples_by_step[int(path.stem)] += 1
                if sample.get("verdict") is not None:
                    counts._add(sample)
        return counts

    def _add(self, sample: dict[str, Any]) -> None:
        self._verdicts[str(sample["verdict"])] += 1
        before, after = sample.get("y_o_acc"), sample.get("y_r_acc")
        is_repair = False
        if is_finite_number(before) and is_finite_number(after):
            is_repair = before < 1 <= after
            self._y_o_right += before
            self._y_r_right += after
            self._changes["graded"] += 1
            self._changes["wrong_to_right"] += is_repair
            self._changes["right_to_wrong"] += after < 1 <= before
        if sample.get("y_r") is None:
            return
        rank = 2 if sample.get("trained_on") != "y_r" else 0 if is_repair else 1
        latest = self._candidates[rank]
        latest.pop(str(sample.get("x")), None)
        latest[str(sample.get("x"))] = sample
        if len(latest) > _NUM_EXAMPLES:
            del latest[next(iter(latest))]

    def as_dict(self) -> dict[str, Any] | None:
        """None for a method without rewriting. Accuracies are over the samples of which both were graded."""
        if not self._verdicts:
            return None
        num_graded = self._changes["graded"]
        return {
            "num_samples": self._verdicts.total(),
            "accept_rate": self._verdicts[Verdict.ACCEPTED] / self._verdicts.total(),
            "verdicts": dict(self._verdicts.most_common()),
            "num_graded": num_graded,
            "y_o_acc": self._y_o_right / num_graded if num_graded else None,
            "y_r_acc": self._y_r_right / num_graded if num_graded else None,
            "wrong_to_right": self._changes["wrong_to_right"],
            "right_to_wrong": self._changes["right_to_wrong"],
        }

    def examples(self) -> list[dict[str, Any]]:
        """A few rewrites to read, best rank first, then latest step; no prompt twice."""
        chosen: dict[str, dict[str, Any]] = {}
        for rank in sorted(self._candidates):
            for prompt, sample in reversed(self._candidates[rank].items()):
                chosen.setdefault(prompt, {key: sample.get(key) for key in _EXAMPLE_KEYS})
        return list(chosen.values())[:_NUM_EXAMPLES]
