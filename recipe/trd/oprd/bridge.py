"""What the first stage of OPRD-Bridge stores: frozen maps of both models' layers into a common space, and for whom.

A folder with `bridge.safetensors` (the maps, float32) and `bridge.json` (the pair of models, how well the maps fit and
how they were made). `python -m recipe.trd.fit_bridge` writes it, preflight checks it, the worker loads it.

Source: OPRD, arXiv 2606.06021, Sec. 3.3.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from recipe.trd.oprd.model_facts import ModelFacts, difference, facts
from verl_ext.divergence import Projection
from verl_ext.runtime import files

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MAPS, CARD = "bridge.safetensors", "bridge.json"

FORMAT = 1
"""Version of both files; raised when an older reader would misread them."""

_COMMAND = "python -m recipe.trd.fit_bridge student=... teacher=... train_files=... out=..."


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
    """Part of the teacher's variance that the space keeps, one for each layer of the student, in [0, 1]."""
    held_out_cosine: tuple[float, ...]
    """Mean cosine of both mapped states at tokens that the maps were not fitted on, in [-1, 1]."""
    provenance: Mapping[str, Any]
    """Numbers of rollouts and positions, settings and versions; for people, nothing reads it."""

    @property
    def rank(self) -> int:
        """Dimensions of the common space."""
        return len(self.projections[0].student)


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
    files.write_json(folder / CARD, card)


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
        problem = difference(fitted, given)
        if problem:
            raise ValueError(
                f"the bridge in {folder} was fitted for {role} {fitted.path}; the {role} of this run, {given.path}, "
                f"{problem}: fit one for this pair with python -m recipe.trd.fit_bridge student={student.name_or_path} "
                f"teacher={teacher.name_or_path} train_files=... out=..., and set trd.objective.hidden.bridge=<out>"
            )
