"""Facts of a model that a bridge is fitted for: its shape, and a hash of its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from verl_ext.runtime import weight_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Shape and weights of a model."""

    path: str
    """As it was given: a folder, or a name on the Hugging Face hub."""
    hidden_size: int
    num_layers: int
    fingerprint: str | None
    """Hash of its weights; None where no safetensors could be found."""


def facts(config: "PretrainedConfig", *, path: str | None = None) -> ModelFacts:
    """Facts of a model from its configuration and the files of its weights.

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
    """Hash over name, type, shape and first row of every tensor of a model: any training changes it.

    Reads a few megabytes of a model of any size. How tensors are spread over files does not matter.

    Returns:
        None where the weights are not on this machine, or not in safetensors.

    Raises:
        ValueError: a file is damaged.
    """
    folder = _local_folder(path)
    hashed = weight_files.hash_tensors(folder, first_rows_only=True) if folder else {}
    # Some folders hold the same weights a second time, in another format.
    of_model = {name: tensor for name, tensor in hashed.items() if tensor.file.name.startswith("model")}
    return weight_files.fingerprint(of_model) if of_model else None


def _local_folder(path: str) -> Path | None:
    if not path or Path(path).expanduser().is_dir():
        return Path(path).expanduser() if path else None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def difference(fitted: ModelFacts, given: ModelFacts) -> str | None:
    """How the given model differs from the one a bridge was fitted for, as the end of a sentence; None if it does not.

    Weights count only where both fingerprints are known.
    """
    shapes = [(model.num_layers, model.hidden_size) for model in (given, fitted)]
    if shapes[0] != shapes[1]:
        return f"has {shapes[0][0]} layers of width {shapes[0][1]}, not {shapes[1][0]} of {shapes[1][1]}"
    is_known = fitted.fingerprint is not None and given.fingerprint is not None
    return "has other weights" if is_known and fitted.fingerprint != given.fingerprint else None
