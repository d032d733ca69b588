"""Splits of the tiny world and their parquet files in verl's format."""

import random
from pathlib import Path

from recipe.trd.tiny_world.problems import ChainProblem, draw_problem
from recipe.trd.tiny_world.world_config import TinyWorldConfig

DATA_SOURCE = "tiny_world"
SPLITS = ("held_out", "tuning", "train")


def draw_splits(config: TinyWorldConfig) -> dict[str, list[ChainProblem]]:
    """Problems of each split, all expressions different. Drawing them again is faster than reading them.

    The splits that are measured come first, so they do not change with the size of the training split.
    """
    data = config.data
    sizes = {"held_out": data.num_held_out, "tuning": data.num_tuning, "train": data.num_train}
    seen: set[str] = set()
    splits: dict[str, list[ChainProblem]] = {}
    for split in SPLITS:
        rng = random.Random(f"{config.seed}/{split}")
        splits[split] = []
        for _ in range(sizes[split]):
            problem = draw_problem(config.world, rng, seen)
            seen.add(problem.expression)
            splits[split].append(problem)
    return splits


def measured_expressions(splits: dict[str, list[ChainProblem]]) -> frozenset[str]:
    """Expressions on which models are measured: no model of the tiny world may be trained on them."""
    return frozenset(problem.expression for split in ("held_out", "tuning") for problem in splits[split])


def row(problem: ChainProblem, *, split: str, index: int) -> dict[str, object]:
    """One row in verl's format; the reference solution is in dialect 0."""
    return {
        "data_source": DATA_SOURCE,
        "prompt": [{"role": "user", "content": problem.prompt}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(problem.answer)},
        "extra_info": {
            "index": index,
            "split": split,
            "problem": problem.prompt,
            "reference_solution": problem.solution(0),
        },
    }


def write_parquet(problems: list[ChainProblem], *, split: str, path: Path) -> None:
    """Write one split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row(problem, split=split, index=index) for index, problem in enumerate(problems)]
    pq.write_table(pa.Table.from_pylist(rows), path)
