"""Models on disk: weights that are complete, adapters that are there, chat templates that open the assistant's turn."""

import json
from pathlib import Path

from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open

from recipe.trd.preflight.model_pair import RunModel
from recipe.trd.rewrite.chat_template import opening

PATTERNS = ("*.safetensors", "*.bin")


def check_weights(key: str, path: str) -> None:
    """A local folder holds weights, and every file of them is as long as it says. Names on the hub are not looked at.

    Raises:
        ValueError: weights are missing or cut off.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    found = {file.name for pattern in PATTERNS for file in folder.glob(pattern)}
    wanted: set[str] = set()
    for index in folder.glob("*.index.json"):
        wanted |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    if missing := sorted(wanted - found):
        raise ValueError(f"{key}={path} lacks {', '.join(missing)} of its weights; copy the folder again")
    if not found:
        raise ValueError(f"{key}={path} holds no weights (*.safetensors or *.bin); copy the folder again")
    for name in sorted(found):
        file = folder / name
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, "pt"):
                    pass
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{key}={path}: {name} is no whole file of weights ({error}); copy the folder again"
            ) from error
        if file.stat().st_size == 0:
            raise ValueError(f"{key}={path}: {name} is empty; copy the folder again")


def check_adapter(config: DictConfig) -> None:
    """The adapter that a LoRA student begins with is there.

    Raises:
        ValueError: it is not, or the run trains no adapter.
    """
    path = config.actor_rollout_ref.model.lora_adapter_path
    if path is None:
        return
    key = "actor_rollout_ref.model.lora_adapter_path"
    if not (Path(path) / "adapter_config.json").is_file():
        raise ValueError(f"{key}={path} holds no adapter_config.json; give the folder of an adapter, or null")
    check_weights(key, path)


def check_opening(role: str, model: RunModel, template_kwargs: dict) -> None:
    """The chat template opens the assistant's turn; else a model writes the marker itself, as part of its response.

    Raises:
        ValueError: it does not, or there is no chat template.
    """
    if not model.tokenizer.chat_template:
        raise ValueError(
            f"the {role} {model.path} has no chat template; take an instruct model, or set "
            "actor_rollout_ref.model.custom_chat_template"
        )
    if not opening(model.tokenizer, template_kwargs):
        raise ValueError(
            f"the chat template of the {role} {model.path} writes nothing for add_generation_prompt: the response "
            "would begin with the assistant's marker; mend the template (actor_rollout_ref.model.custom_chat_template)"
        )
