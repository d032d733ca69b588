"""A run that could start, but for the changes of a test: small models with weights, data, a configuration."""

import copy
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import save_file
from transformers import Qwen3Config

CONFIGS = Path(__file__).parents[4] / "configs"
TEACHER = "distillation.teacher_models.teacher_model"
MAX_POSITIONS, VOCAB = 256, 300


@cache
def composed(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("trd_trainer", overrides=["model=tiny", "data=tiny_world", "cluster=cpu", *overrides])


@pytest.fixture(scope="session")
def compose_run():
    """`compose_run(*overrides)`: the configuration, not to be changed."""
    return composed


@pytest.fixture(scope="module")
def save_model(tmp_path_factory, tokenizer):
    """Folder of a model as far as its configuration and tokenizer go."""

    def save(tokenizer=tokenizer, **changes):
        folder = tmp_path_factory.mktemp("model")
        sizes = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
        sizes |= {"max_position_embeddings": MAX_POSITIONS}
        Qwen3Config(**{**sizes, **changes}).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
        return str(folder)

    return save


@pytest.fixture(scope="module")
def model_path(save_model):
    return save_model()


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "train.parquet"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"1+{number}=?"}],
            "data_source": "x",
            "reward_model": {"ground_truth": str(1 + number)},
            "extra_info": {"reference_solution": f"1+{number}={1 + number}"},
        }
        for number in range(64)
    ]
    pd.DataFrame(rows).to_parquet(path)
    return str(path)


@pytest.fixture
def make_config(model_path, data_file):
    """A configuration that can run, but for the changes."""

    def make(method="trd_opd", *overrides, **changes):
        config = copy.deepcopy(composed(f"method={method}", *overrides))
        ready = {
            "actor_rollout_ref.model.path": model_path,
            f"{TEACHER}.model_path": model_path,
            "data.train_files": data_file,
            "data.val_files": data_file,
        }
        for key, value in {**ready, **changes}.items():
            OmegaConf.update(config, key, value)
        return config

    return make
