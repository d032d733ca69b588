"""Student and teachers as models on disk: readable, of one vocabulary, and comparable the way the objective asks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from recipe.trd.config.schema import TrdConfig
from recipe.trd.config.teacher_plan import Holder
from recipe.trd.oprd import bridge
from recipe.trd.rewrite.tokenizers import check_same_tokens
from verl_ext.divergence import TOP_K_SUPPORTS
from verl_ext.runtime.errors import first_line

SERVER_PATH = "distillation.teacher_models.teacher_model.model_path"


@dataclass(frozen=True)
class RunModel:
    """Configuration and tokenizer of a model that the run will load."""

    key: str
    """The key that names it, for messages."""
    path: str
    config: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def vocab_size(self) -> int:
        """Rows of its output head, padding included."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def max_positions(self) -> int:
        """Longest sequence that it was made for, tokens."""
        return int(getattr(self.config, "max_position_embeddings", None) or 2**31)


def read(key: str, path: str | None) -> RunModel:
    """Configuration and tokenizer of the model that a key names.

    Raises:
        ValueError: the key is not set, or nothing can be read there.
    """
    if not path:
        raise ValueError(f"{key} is not set; choose model=... or set it")
    try:
        return RunModel(key, path, AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path))
    except (OSError, ValueError) as error:
        hint = "" if Path(path).exists() else " (no such folder here, and no such model could be had from the hub)"
        reason = first_line(error)
        raise ValueError(f"{key}={path}: no model can be read there{hint}: {reason}") from error


def read_student(config: DictConfig) -> RunModel:
    """The student, with the chat template of the run."""
    student = read("actor_rollout_ref.model.path", config.actor_rollout_ref.model.path)
    if (template := config.actor_rollout_ref.model.custom_chat_template) is not None:
        student.tokenizer.chat_template = template
    return student


def read_teachers(config: DictConfig, trd: TrdConfig, student: RunModel) -> list[RunModel]:
    """Every model other than the student that teaches: that of the teacher's server first, of the trainer last.

    Raises:
        ValueError: one cannot be read, or cannot teach this student.
    """
    assert trd.teacher is not None, "there is a teacher"
    teachers = []
    for key, path in _paths(config, trd).items():
        teachers.append(read(key, path))
        try:
            check_same_tokens(
                student.tokenizer,
                teachers[-1].tokenizer,
                student_path=student.path,
                teacher_path=teachers[-1].path,
                eos_remap=None if trd.upstream else trd.teacher.eos_remap,
            )
        except ValueError as error:
            if not trd.upstream or student.tokenizer.get_vocab() != teachers[-1].tokenizer.get_vocab():
                raise
            raise ValueError(
                f"{error}; or choose a method that knows trd.teacher.eos_remap (trd.upstream=false), e.g. method=eopd"
            ) from error
        _check_heads(trd, student, teachers[-1])
    return teachers


def _paths(config: DictConfig, trd: TrdConfig) -> dict[str, str | None]:
    assert trd.teacher is not None, "there is a teacher"
    assert trd.teacher_plan is not None, "there is a teacher"
    paths = {SERVER_PATH: OmegaConf.select(config, SERVER_PATH)} if trd.has_server else {}
    if trd.teacher_plan.module is Holder.OWN and not trd.teacher_plan.is_self:
        paths["trd.teacher.engine.path"] = trd.teacher.engine.path
    return paths


def _check_heads(trd: TrdConfig, student: RunModel, teacher: RunModel) -> None:
    """Heads of different size agree on all tokens: what one has more is padding."""
    smaller, num_tokens = min(student.vocab_size, teacher.vocab_size), len(student.tokenizer)
    if student.vocab_size != teacher.vocab_size and smaller < num_tokens:
        raise ValueError(
            f"the output heads of student and teacher have {student.vocab_size} and {teacher.vocab_size} rows for a "
            f"tokenizer of {num_tokens} tokens: the smaller one lacks tokens; choose checkpoints of one family"
        )
    for term in trd.objective.terms:
        if term.support in TOP_K_SUPPORTS and term.top_k > smaller:
            raise ValueError(f"trd.objective.top_k={term.top_k} exceeds the vocabulary of {smaller}; lower it")


def check_layers(trd: TrdConfig, student: RunModel, teacher: RunModel) -> None:
    """Hidden states can be compared: layer by layer, or through fitted maps.

    Raises:
        ValueError: the models have other shapes than that asks for.
    """
    if trd.objective.hidden_term is None:
        return
    if trd.objective.hidden.bridge is not None:
        bridge.check(trd.objective.hidden.bridge, student=student.config, teacher=teacher.config)
        return
    shapes = [
        (model.config.get_text_config().num_hidden_layers, model.config.get_text_config().hidden_size)
        for model in (student, teacher)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"hidden_mse compares layer by layer, but the student has {shapes[0][0]} layers of {shapes[0][1]} and the "
            f"teacher {shapes[1][0]} of {shapes[1][1]}: choose method=oprd_bridge, or a pair from one initialisation"
        )
