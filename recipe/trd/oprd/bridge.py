"""What the first stage of OPRD-Bridge stores: frozen maps of both models' layers into a common space, and for whom.

A folder with `bridge.safetensors` (the maps, float32) and `bridge.json` (the pair of models, how well the maps fit and
how they were made). `python -m recipe.trd.fit_bridge` writes it, preflight checks it, the worker loads it.

Source: OPRD, arXiv 2606.06021, Sec. 3.3.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from verl_ext.divergence import Projection

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MAPS, CARD = "bridge.safetensors", "bridge.json"

FORMAT = 1
"""Of both files; raised when an older reader would misread them."""

_COMMAND = "python -m recipe.trd.fit_bridge student=... teacher=... train_files=... out=..."


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model that a bridge was fitted for."""

    path: str
    """As it was given: a folder, or a name on the Hugging Face hub."""
    hidden_size: int
    num_layers: int
    fingerprint: str | None
    """Of its weights; None where no safetensors could be found."""


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """Maps of one pair of models; entry l of every sequence belongs to layer l of the student.

    Layers count from 0 and are indices into Hugging Face's `hidden_states[1:]`: 0 is the output of the first layer, the
    last one comes after the final norm.
    """

    projections: tuple[Projection, ...]
    teacher_layers: tuple[int, ...]
    """The teacher's layer for every layer of the student."""
    student: ModelFacts
    teacher: ModelFacts
    explained_variance: tuple[float, ...]
    """Part of the teacher's variance that the space keeps, in [0, 1]."""
    held_out_cosine: tuple[float, ...]
    """Mean cosine of both mapped states at tokens that the maps were not fitted on, in [-1, 1]."""
    provenance: Mapping[str, Any]
    """Numbers of rows, settings and versions; for people, nothing reads it."""

    @property
    def rank(self) -> int:
        """Dimensions of the common space."""
        return len(self.projections[0].student)


def layer_map(num_student_layers: int, num_teacher_layers: int) -> tuple[int, ...]:
    """The teacher's layer for every layer of the student, at the same relative depth; both count from 0.

        phi(l) = round((l - 1) / (L_S - 1) * (L_T - 1)) + 1, in the paper's count from 1

    A tie goes to the even number, counted from 0, as in Python's and torch's `round`; the fraction is exact. First goes
    to first and last to last. The one layer of a student of depth 1, where the formula is 0/0, goes to the teacher's
    last layer: what both heads read.

    Raises:
        ValueError: a model without layers.

    Source: OPRD, arXiv 2606.06021, Sec. 3.3.
    """
    if min(num_student_layers, num_teacher_layers) < 1:
        raise ValueError(f"{num_student_layers} and {num_teacher_layers} layers; a model has at least one")
    if num_student_layers == 1:
        return (num_teacher_layers - 1,)
    last = num_teacher_layers - 1
    return tuple(round(Fraction(layer * last, num_student_layers - 1)) for layer in range(num_student_layers))


def facts(config: "PretrainedConfig", *, path: str | None = None) -> ModelFacts:
    """What a bridge has to know of a model.

    Args:
        config: as `AutoConfig.from_pretrained` gave it.
        path: the model; by default where the configuration came from.
    """
    text = config.get_text_config()
    path = path or str(config.name_or_path)
    return ModelFacts(
        path=path,
        hidden_size=int(text.hidden_size),
        num_layers=int(text.num_hidden_layers),
        fingerprint=weights_fingerprint(path),
    )


def weights_fingerprint(path: str) -> str | None:
    """Hash over name, type, shape and first row of every tensor of a model: other training, other hash.

    Reads a few megabytes of a model of any size. How tensors are spread over files does not matter.

    Returns:
        None where the weights are not on this machine, or not in safetensors.
    """
    folder = _local_folder(path)
    digests: dict[str, str] = {}
    for file in sorted(folder.glob("model*.safetensors")) if folder else ():
        with safe_open(file, framework="pt") as tensors:
            for name in sorted(tensors.keys()):
                part = tensors.get_slice(name)
                shape = part.get_shape()
                digest = hashlib.sha256(json.dumps([name, part.get_dtype(), shape]).encode())
                row = part[:1] if shape else tensors.get_tensor(name)
                digest.update(row.contiguous().flatten().view(torch.uint8).numpy().tobytes())
                digests[name] = digest.hexdigest()
    if not digests:
        return None
    return hashlib.sha256("\n".join(digests[name] for name in sorted(digests)).encode()).hexdigest()


def _local_folder(path: str) -> Path | None:
    if not path or Path(path).expanduser().is_dir():
        return Path(path).expanduser() if path else None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def save(folder: str | Path, bridge: Bridge) -> None:
    """Write both files; the card last, so that a folder with a card is whole."""
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)
    tensors = {
        f"{side}.{layer}": tensor.detach().float().cpu().contiguous()
        for layer, projection in enumerate(bridge.projections)
        for side, tensor in vars(projection).items()
    }
    save_file(tensors, folder / MAPS)
    card = {
        "format": FORMAT,
        "rank": bridge.rank,
        "student": asdict(bridge.student),
        "teacher": asdict(bridge.teacher),
        "teacher_layers": bridge.teacher_layers,
        "explained_variance": bridge.explained_variance,
        "held_out_cosine": bridge.held_out_cosine,
        "provenance": dict(bridge.provenance),
    }
    temporary = folder / f"{CARD}.tmp"
    temporary.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    temporary.rename(folder / CARD)


def load(folder: str | Path, *, device: torch.device | str) -> Bridge:
    """Read a folder that `save` wrote.

    Args:
        folder: `trd.objective.hidden.bridge`.
        device: where the maps go; they stay float32.

    Raises:
        ValueError: files are missing, damaged or do not fit together.
    """
    folder = Path(folder).expanduser()
    card = _read_card(folder)
    student, teacher = (ModelFacts(**card[role]) for role in ("student", "teacher"))
    try:
        tensors = load_file(folder / MAPS, device=str(device))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / MAPS} cannot be read ({error}): fit the bridge again with {_COMMAND}") from error
    shapes = {
        "student": (card["rank"], student.hidden_size),
        "teacher": (card["rank"], teacher.hidden_size),
        "teacher_mean": (teacher.hidden_size,),
    }
    expected = {f"{side}.{layer}": shape for layer in range(student.num_layers) for side, shape in shapes.items()}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected:
        raise ValueError(f"{MAPS} and {CARD} in {folder} do not belong together: fit the bridge again with {_COMMAND}")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError(f"{folder / MAPS} holds values that are not finite: fit the bridge again with {_COMMAND}")
    return Bridge(
        projections=tuple(
            Projection(**{side: tensors[f"{side}.{layer}"] for side in shapes}) for layer in range(student.num_layers)
        ),
        teacher_layers=tuple(card["teacher_layers"]),
        student=student,
        teacher=teacher,
        explained_variance=tuple(card["explained_variance"]),
        held_out_cosine=tuple(card["held_out_cosine"]),
        provenance=card["provenance"],
    )


def _read_card(folder: Path) -> dict[str, Any]:
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder} holds no bridge ({CARD} is missing or damaged): make one with {_COMMAND}"
        ) from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ValueError(f"{folder} holds a bridge of another version of this package: fit it again with {_COMMAND}")
    return card


def check(folder: str | Path, *, student: "PretrainedConfig", teacher: "PretrainedConfig") -> None:
    """Refuse a bridge that was fitted for other models.

    Widths and depths always have to fit. Weights have to be the same wherever both fingerprints can be had: maps of
    other weights of equal shape would run, and teach noise. That holds for the student too, whose training starts
    where the maps were fitted.

    Args:
        folder: `trd.objective.hidden.bridge`.
        student: of the run, as `AutoConfig.from_pretrained` gave it.
        teacher: likewise.

    Raises:
        ValueError: no bridge, or one for another pair; the message says what to do.
    """
    folder = Path(folder).expanduser()
    card = _read_card(folder)
    if not (folder / MAPS).is_file():
        raise ValueError(f"{folder} holds no {MAPS}: make it with {_COMMAND}")
    for role, config in (("student", student), ("teacher", teacher)):
        fitted, given = ModelFacts(**card[role]), facts(config)
        problem = _difference(fitted, given)
        if problem:
            raise ValueError(
                f"the bridge in {folder} was fitted for {role} {fitted.path}; the {role} of this run, {given.path}, "
                f"{problem}: fit one for this pair with python -m recipe.trd.fit_bridge student={student.name_or_path} "
                f"teacher={teacher.name_or_path} train_files=... out=..., and set trd.objective.hidden.bridge=<out>"
            )


def _difference(fitted: ModelFacts, given: ModelFacts) -> str | None:
    shapes = [(model.num_layers, model.hidden_size) for model in (given, fitted)]
    if shapes[0] != shapes[1]:
        return f"has {shapes[0][0]} layers of width {shapes[0][1]}, not {shapes[1][0]} of {shapes[1][1]}"
    is_known = fitted.fingerprint is not None and given.fingerprint is not None
    return "has other weights" if is_known and fitted.fingerprint != given.fingerprint else None
