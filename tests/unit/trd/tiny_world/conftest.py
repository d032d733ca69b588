"""Fixtures: a world whose models have two layers of width 16 and five updates."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from recipe.trd.tiny_world.supervised_training import build_model
from recipe.trd.tiny_world.tokenizer import build_tokenizer
from recipe.trd.tiny_world.world_config import ModelConfig, TinyWorldConfig, from_mapping

CONFIG_FILE = Path(__file__).parents[4] / "configs" / "tiny_world.yaml"

ROLES = ("teacher", "student", "self_student")
SMALL = [
    *[f"{role}.model.{key}" for role in ROLES for key in ("num_layers=2", "hidden_size=16")],
    *[f"{role}.model.{key}" for role in ROLES for key in ("head_dim=8", "intermediate_size=16")],
    *[f"{role}.training.{key}" for role in ROLES for key in ("num_steps=5", "batch_size=4")],
    "data.num_train=20",
    "data.num_tuning=10",
    "data.num_held_out=10",
    "evaluation.num_problems=4",
    "evaluation.num_length_problems=5",
    "evaluation.max_response_tokens=4",
    "evaluation.min_rewrite_accuracy=0.0",
    "threads=1",
]


@pytest.fixture(scope="session")
def default_values() -> dict[str, object]:
    """The shipped configuration as plain values."""
    values = OmegaConf.to_container(OmegaConf.load(CONFIG_FILE))
    return {key: value for key, value in values.items() if key not in ("hydra", "defaults")}


@pytest.fixture(scope="session")
def make_config(default_values: dict[str, object]) -> Callable[..., TinyWorldConfig]:
    """Typed configuration of a small world from `key=value` overrides."""

    def make(*overrides: str) -> TinyWorldConfig:
        merged = OmegaConf.merge(default_values, OmegaConf.from_dotlist([*SMALL, *overrides]))
        return from_mapping(TinyWorldConfig, OmegaConf.to_container(merged))

    return make


@pytest.fixture(scope="session")
def config(make_config: Callable[..., TinyWorldConfig]) -> TinyWorldConfig:
    return make_config()


@pytest.fixture(scope="session")
def tokenizer(config: TinyWorldConfig) -> PreTrainedTokenizerBase:
    return build_tokenizer(config.world, config.seed)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """A model of two narrow layers with random weights."""
    config = ModelConfig(num_layers=2, hidden_size=16, num_heads=2, head_dim=32, intermediate_size=16)
    return build_model(config, tokenizer=tokenizer, max_position_embeddings=64, seed=0).eval()
