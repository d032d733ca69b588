"""What each stage of the build makes. Imported only when a stage must run, because it imports torch."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3ForCausalLM

from recipe.trd.tiny_world.cache import Stage
from recipe.trd.tiny_world.measure_models import BuiltWorld, measure
from recipe.trd.tiny_world.splits import draw_splits, write_parquet
from recipe.trd.tiny_world.supervised_training import keep_freed_memory
from recipe.trd.tiny_world.teacher_student import train_student, train_teacher
from recipe.trd.tiny_world.tokenizer import build_tokenizer
from recipe.trd.tiny_world.world_card import build_card
from recipe.trd.tiny_world.world_config import TinyWorldConfig
from verl_ext.runtime import files


@dataclass(frozen=True)
class StageInputs:
    """What a stage may use: the configuration, the outputs of finished stages in `out`, an empty `folder` for its own.

    `report` takes the work done, all the work (same unit), and a note for the progress bar.
    """

    config: TinyWorldConfig
    out: Path
    folder: Path
    finished: Sequence[Stage]
    report: Callable[[int, int, str], None]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The finished tokenizer."""
        return AutoTokenizer.from_pretrained(self.out / "tokenizer")


def _build_tokenizer(inputs: StageInputs) -> None:
    tokenizer = build_tokenizer(inputs.config.world, inputs.config.seed)
    tokenizer.save_pretrained(inputs.folder / "tokenizer")
    inputs.report(1, 1, f"{len(tokenizer)} tokens")


def _build_data(inputs: StageInputs) -> None:
    splits = draw_splits(inputs.config)
    for split, problems in splits.items():
        write_parquet(problems, split=split, path=inputs.folder / f"{split}.parquet")
    inputs.report(1, 1, f"{sum(map(len, splits.values()))} problems")


def _build_teacher(inputs: StageInputs) -> None:
    _prepare_torch(inputs.config.threads)
    _save_model(inputs, "teacher", train_teacher(inputs.config, inputs.tokenizer(), report=inputs.report))


def _build_student(inputs: StageInputs) -> None:
    _prepare_torch(inputs.config.threads)
    _save_model(inputs, "student", train_student(inputs.config, inputs.tokenizer(), report=inputs.report))


def _save_model(inputs: StageInputs, role: str, model: Qwen3ForCausalLM) -> None:
    # Copied, because a tokenizer that was loaded saves other bytes than the one that was built.
    shutil.copytree(inputs.out / "tokenizer", inputs.folder / role)
    model.save_pretrained(inputs.folder / role)


def _prepare_torch(threads: int) -> None:
    torch.set_num_threads(threads)
    keep_freed_memory()
    transformers.logging.disable_progress_bar()


def _build_evaluation(inputs: StageInputs) -> None:
    _prepare_torch(inputs.config.threads)
    card = build_card(inputs.config, inputs.out, finished=inputs.finished, report=inputs.report)
    files.write_json(inputs.folder / "world.json", card)


def _build_self_student(inputs: StageInputs) -> None:
    """Trained as a teacher is, and measured in both roles."""
    _prepare_torch(inputs.config.threads)
    config, tokenizer, start = inputs.config, inputs.tokenizer(), time.monotonic()
    model = train_teacher(replace(config, teacher=config.self_student), tokenizer, report=inputs.report)
    _save_model(inputs, "self_student", model)
    world = BuiltWorld(
        teacher=model,
        student=model,
        tokenizer=tokenizer,
        splits=draw_splits(config),
        config=config.evaluation,
        seed=config.seed,
    )
    measured = measure(world, report=inputs.report)
    seconds = {"self_student": round(time.monotonic() - start, 1)}
    card = {"config": asdict(config.self_student), "seconds": seconds, **measured}
    files.write_json(inputs.folder / "self_student.json", card)


BUILDERS: dict[str, Callable[[StageInputs], None]] = {
    "tokenizer": _build_tokenizer,
    "data": _build_data,
    "teacher": _build_teacher,
    "student": _build_student,
    "evaluation": _build_evaluation,
    "self_student": _build_self_student,
}
