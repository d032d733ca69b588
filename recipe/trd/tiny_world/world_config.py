"""Types of every key in `configs/tiny_world.yaml`. Values and their meaning live there; nothing here has a default."""

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import TypeVar, get_type_hints

T = TypeVar("T")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What a problem looks like: `first op operand op operand ...` with every running value in 0..value_max."""

    first_max: int
    operand_max: int
    value_max: int
    num_operations_min: int
    num_operations_max: int

    def __post_init__(self) -> None:
        """Refuse ranges in which a chain could not be continued."""
        _require(
            1 <= self.first_max <= self.value_max, f"world.first_max={self.first_max} must be in 1..{self.value_max}"
        )
        _require(
            1 <= self.operand_max <= self.value_max // 2,
            f"world.operand_max={self.operand_max} must be in 1..value_max/2, so that every value has a next step",
        )
        _require(
            1 <= self.num_operations_min <= self.num_operations_max,
            f"need 1 <= world.num_operations_min={self.num_operations_min} "
            f"<= world.num_operations_max={self.num_operations_max}",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Number of problems of each split; no expression is in two splits."""

    num_train: int
    num_tuning: int
    num_held_out: int


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a Qwen3 model with tied embeddings and as many key-value heads as heads."""

    num_layers: int
    hidden_size: int
    num_heads: int
    head_dim: int
    intermediate_size: int


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Supervised training with Muon on matrices and AdamW on everything else."""

    num_steps: int
    batch_size: int
    muon_lr: float
    adamw_lr: float
    warmup_steps: int
    flat_frac: float

    def __post_init__(self) -> None:
        """Refuse a schedule without steps or with a flat part outside [0, 1)."""
        _require(self.num_steps >= 1, f"num_steps={self.num_steps} must be at least 1")
        _require(0.0 <= self.flat_frac < 1.0, f"flat_frac={self.flat_frac} must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class TaskWeights:
    """How often each task is the task of a training batch, in any unit; 0 leaves a task out."""

    solve: float
    rewrite: float
    privileged_solve: float
    privileged_rewrite: float


@dataclass(frozen=True, kw_only=True)
class TinyTeacherConfig:
    """A teacher: solves, and rewrites solutions in the dialect in which they are written. The student of
    self-distillation is trained like one, as it has to read the contexts of a teacher."""

    model: ModelConfig
    training: TrainingConfig
    tasks: TaskWeights
    dialect_probability: float
    good_frac: float


@dataclass(frozen=True, kw_only=True)
class TinyStudentConfig:
    """The warm student: solves only, and stops well before it can add."""

    model: ModelConfig
    training: TrainingConfig
    dialect_probability: float


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the finished models are measured, and what the teacher must reach."""

    num_problems: int
    num_length_problems: int
    max_response_tokens: int
    min_rewrite_accuracy: float


@dataclass(frozen=True, kw_only=True)
class TinyWorldConfig:
    """Everything that defines a build."""

    out: str
    seed: int
    threads: int
    max_position_embeddings: int
    world: WorldConfig
    data: DataConfig
    teacher: TinyTeacherConfig
    student: TinyStudentConfig
    with_self_student: bool
    self_student: TinyTeacherConfig
    evaluation: EvaluationConfig

    def __post_init__(self) -> None:
        """Refuse an evaluation that asks for more problems than its split holds."""
        for key, asked, split, held in (
            ("num_problems", self.evaluation.num_problems, "data.num_held_out", self.data.num_held_out),
            ("num_length_problems", self.evaluation.num_length_problems, "data.num_train", self.data.num_train),
        ):
            _require(asked <= held, f"evaluation.{key}={asked} must be at most {split}={held}")


def from_mapping(schema: type[T], values: Mapping[str, object], *, node: str = "") -> T:
    """Instance of a dataclass of this file from nested plain values.

    Raises:
        ValueError: a key is missing or unknown, or a value has the wrong type or is out of range.
    """
    types = get_type_hints(schema)
    _require(
        values.keys() == types.keys(),
        f"{node or 'the configuration'} has keys {sorted(values)} and needs {sorted(types)}",
    )
    typed: dict[str, object] = {}
    for name, value in values.items():
        key = f"{node}.{name}" if node else name
        if isinstance(value, Mapping) and is_dataclass(types[name]):
            typed[name] = from_mapping(types[name], value, node=key)
            continue
        accepted = (int, float) if types[name] is float else types[name]
        # A bool is an int, but no number of anything.
        is_valid = isinstance(value, accepted) and isinstance(value, bool) == (types[name] is bool)
        _require(is_valid, f"{key}={value!r} must be of type {types[name].__name__}")
        typed[name] = value
    return schema(**typed)
