"""The card of a finished world, `world.json`: configuration, keys, versions, seconds, and what was measured."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, Qwen3ForCausalLM

from recipe.trd.tiny_world.cache import Stage, build_seconds
from recipe.trd.tiny_world.measure_models import BuiltWorld, measure
from recipe.trd.tiny_world.splits import draw_splits
from recipe.trd.tiny_world.world_config import TinyWorldConfig


def build_card(
    config: TinyWorldConfig, out: Path, *, finished: Sequence[Stage], report: Callable[[int, int, str], None]
) -> dict[str, Mapping[str, object]]:
    """Measure the finished models and write down everything that belongs to a world.

    Raises:
        ValueError: the teacher does not reach `evaluation.min_rewrite_accuracy`.
    """
    start = time.monotonic()
    world = BuiltWorld(
        teacher=Qwen3ForCausalLM.from_pretrained(out / "teacher").eval(),
        student=Qwen3ForCausalLM.from_pretrained(out / "student").eval(),
        tokenizer=AutoTokenizer.from_pretrained(out / "tokenizer"),
        splits=draw_splits(config),
        config=config.evaluation,
        seed=config.seed,
    )
    measured = measure(world, report=report)
    _require_good_teacher(config, measured["accuracy"]["teacher_rewrite"])
    seconds = {stage.name: build_seconds(out, stage) for stage in finished}
    return {
        "config": asdict(config),
        "keys": {stage.name: stage.key for stage in finished},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seconds": seconds | {"evaluation": round(time.monotonic() - start, 1)},
        **measured,
    }


def _require_good_teacher(config: TinyWorldConfig, rewrite_accuracy: float) -> None:
    required = config.evaluation.min_rewrite_accuracy
    if rewrite_accuracy < required:
        raise ValueError(
            f"the teacher rewrites only {rewrite_accuracy:.3f} of the student's samples correctly, below "
            f"evaluation.min_rewrite_accuracy={required}: raise "
            f"teacher.training.num_steps={config.teacher.training.num_steps} or make the world easier"
        )
