"""Problems to evaluate on: named suites, and problem sets in verl's parquet format."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

SUITES: dict[str, tuple[str, ...]] = {
    "math": ("aime24", "aime25", "hmmt25", "beyond_aime", "amo_bench", "math500"),
    "code": ("humaneval_plus", "mbpp_plus", "livecodebench"),
    "tiny_world": ("tiny_world",),
}
"""Names of prepared problem sets. The name of one set is a suite of its own."""

FILE_NAMES = ("test.parquet", "held_out.parquet", "val.parquet")
"""Files of a prepared set that are meant for evaluation; the first that exists is taken."""


@dataclass(frozen=True)
class SuiteProblem:
    """One problem: its prompt and what its grader needs."""

    id: str
    """Hash of prompt and right answer: the same wherever the problem stands in a file, and in other files."""
    messages: tuple[Mapping[str, str], ...]
    data_source: str
    ability: str
    ground_truth: Any
    extra_info: Mapping[str, Any]


@dataclass(frozen=True)
class ProblemSet:
    """Problems that are averaged over."""

    name: str
    problems: tuple[SuiteProblem, ...]

    @property
    def fingerprint(self) -> str:
        """Hash over the problems, in any order."""
        return hashlib.sha256("\n".join(sorted(problem.id for problem in self.problems)).encode()).hexdigest()


def find(suites: Sequence[str], files: Sequence[Path], *, data_dir: Path) -> dict[str, Path]:
    """Files to evaluate on.

    Args:
        suites: names of suites or of prepared sets.
        files: further files.
        data_dir: folder of the prepared sets.

    Returns:
        Name of the set to its file.

    Raises:
        ValueError: nothing was asked for, a set is not there, or two have the same name.
    """
    names = list(dict.fromkeys(name for suite in suites for name in SUITES.get(suite, (suite,))))
    found = {name: _prepared(name, data_dir=data_dir) for name in names}
    for path in files:
        if not path.is_file():
            raise ValueError(f"--data {path}: no such file")
        name = path.parent.name if path.name in FILE_NAMES and path.parent.name else path.stem
        if name in found:
            raise ValueError(f"two problem sets are called {name}: rename the file {path}")
        found[name] = path
    if not found:
        raise ValueError("nothing to evaluate on: give --suite NAME or --data FILE")
    return found


def _prepared(name: str, *, data_dir: Path) -> Path:
    paths = [data_dir / name / file for file in FILE_NAMES]
    for path in paths:
        if path.is_file():
            return path
    raise ValueError(
        f"{name}: neither a suite ({', '.join(SUITES)}) nor a prepared set, for {data_dir / name} holds none of "
        f"{', '.join(FILE_NAMES)}; run python -m recipe.trd.data prepare {name}, or set --data-dir"
    )


def load(name: str, path: Path, *, limit: int | None = None) -> ProblemSet:
    """Read a problem set.

    Args:
        name: of the set.
        path: parquet with the columns prompt (chat messages) and reward_model (with ground_truth); data_source, ability
            and extra_info where they exist.
        limit: take the first problems only.

    Raises:
        ValueError: the file is not in this format; the message names the row.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit}: take at least one problem")
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error
    missing = {"prompt", "reward_model"} - set(table.columns)
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}; it has {', '.join(table.columns)}")
    seen: Counter[str] = Counter()
    problems = []
    for number, row in enumerate(table.head(limit or len(table)).to_dict("records")):
        try:
            problems.append(_problem(row, seen))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, row {number}: {error or type(error).__name__}") from error
    if not problems:
        raise ValueError(f"{path} holds no problem")
    return ProblemSet(name, tuple(problems))


def _problem(row: Mapping[str, Any], seen: Counter[str]) -> SuiteProblem:
    messages = tuple({"role": str(m["role"]), "content": str(m["content"])} for m in row["prompt"])
    if not messages:
        raise ValueError("prompt holds no message")
    reward_model = row["reward_model"]
    if not isinstance(reward_model, Mapping) or reward_model.get("ground_truth") is None:
        raise ValueError("reward_model has no ground_truth")
    ground_truth = _plain(reward_model["ground_truth"])
    content = json.dumps([messages, ground_truth], ensure_ascii=False, sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    # A set that contains a problem twice has two problems, each with its own samples.
    seen[key] += 1
    return SuiteProblem(
        id=key if seen[key] == 1 else f"{key}-{seen[key]}",
        messages=messages,
        data_source=str(row.get("data_source") or ""),
        ability=str(row.get("ability") or ""),
        ground_truth=ground_truth,
        extra_info=_plain(row.get("extra_info") or {}),
    )


def _plain(value: Any) -> Any:
    """Values from parquet as plain Python values; arrays become lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
