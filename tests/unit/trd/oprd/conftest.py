"""Two small models with random weights, in folders."""

import pytest
import torch
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM


@pytest.fixture
def make_model():
    """Save a model to a folder and give its configuration."""

    def build(folder, *, hidden_size, num_layers, seed=0, **changes):
        torch.manual_seed(seed)
        sizes = {"vocab_size": 32, "intermediate_size": 16, "max_position_embeddings": 64, **changes}
        config = Qwen3Config(
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=4,
            **sizes,
        )
        Qwen3ForCausalLM(config).save_pretrained(folder)
        return AutoConfig.from_pretrained(folder)

    return build


@pytest.fixture
def pair(tmp_path, make_model):
    """Configurations of a student of 2 layers and a teacher of 3, with weights in folders."""
    return {
        "student": make_model(tmp_path / "student", hidden_size=8, num_layers=2),
        "teacher": make_model(tmp_path / "teacher", hidden_size=16, num_layers=3, seed=1),
    }
