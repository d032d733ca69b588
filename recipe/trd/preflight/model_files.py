"""Models on disk: weights that are complete, adapters that are there, chat templates that open the assistant's turn."""

import json
import zipfile
from pathlib import Path

from omegaconf import DictConfig

from recipe.trd.preflight.model_pair import RunModel
from recipe.trd.rewrite.chat_template import opening
from verl_ext.runtime import weight_files


def check_weights(key: str, path: str) -> None:
    """A local folder holds weights, and none of their files is missing or cut off. Names on the hub are not looked at.

    Raises:
        ValueError: weights are missing or cut off.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    # Where there are both formats, safetensors are what is loaded.
    suffix = next((suffix for suffix in ("safetensors", "bin") if any(folder.glob(f"*.{suffix}"))), None)
    if suffix is None:
        raise ValueError(f"{key}={path} holds no weights (*.safetensors or *.bin); copy the folder again")
    found = {file.name for file in folder.glob(f"*.{suffix}")}
    wanted: set[str] = set()
    for index in folder.glob(f"*.{suffix}.index.json"):
        wanted |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if missing := sorted(wanted - found):
        raise ValueError(f"{key}={path} lacks {', '.join(missing)} of its weights; copy the folder again")
    for name in sorted(found):
        if not _is_whole(folder / name):
            raise ValueError(f"{key}={path}: {name} is no whole file of weights; copy the folder again")


def _is_whole(file: Path) -> bool:
    if file.suffix == ".safetensors":
        return weight_files.is_whole(file)
    # What torch saves is a zip archive, whose directory is at its end.
    return zipfile.is_zipfile(file)


def check_adapter(config: DictConfig) -> None:
    """The adapter that a LoRA student begins with is there.

    Raises:
        ValueError: it is not.
    """
    path = config.actor_rollout_ref.model.lora_adapter_path
    if path is None:
        return
    key = "actor_rollout_ref.model.lora_adapter_path"
    if not (Path(path) / "adapter_config.json").is_file():
        raise ValueError(f"{key}={path} holds no adapter_config.json; give the folder of an adapter, or null")
    check_weights(key, path)


def check_opening(model: RunModel, template_kwargs: dict, *, remedy: str) -> None:
    """The chat template opens the assistant's turn; else a model writes the marker itself, as part of its response.

    Args:
        model: whose template.
        template_kwargs: arguments of the template.
        remedy: where another template can be set, for the message.

    Raises:
        ValueError: it does not, or there is no chat template.
    """
    if not model.tokenizer.chat_template:
        raise ValueError(f"{model.key}={model.path} has no chat template; take an instruct model, or {remedy}")
    if not opening(model.tokenizer, template_kwargs):
        raise ValueError(
            f"{model.key}={model.path}: its chat template writes nothing for add_generation_prompt, so that a response "
            f"would begin with the assistant's marker; {remedy}"
        )
