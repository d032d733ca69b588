"""A bridge between the tiny world's student (2 layers of 64) and teacher (4 of 128), fitted on real rollouts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from recipe.trd import bridge
from verl_ext.divergence import hidden_mse

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fitted(world, tmp_path_factory):
    """The folder of a bridge, and what the command printed."""
    out = tmp_path_factory.mktemp("bridge") / "out"
    overrides = {
        "student": world / "student",
        "teacher": world / "teacher",
        "train_files": world / "train.parquet",
        "out": out,
        "num_prompts": 256,
        "max_prompt_length": 64,
        "max_response_length": 64,
        "dtype": "float32",
        "device": "cpu",
        "batch_tokens": 4096,
        "vllm": "{enforce_eager: true}",
    }
    environment = {
        **os.environ,
        "VERL_PLATFORM": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    command = [sys.executable, "-m", "recipe.trd.fit_bridge", *(f"{key}={value}" for key, value in overrides.items())]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    return out, ended.stdout


def test_maps_fit_and_are_for_this_pair(fitted, world):
    out, terminal = fitted
    configs = {role: AutoConfig.from_pretrained(world / role) for role in ("student", "teacher")}
    bridge.check(out, **configs)
    loaded = bridge.load(out, device="cpu")
    assert loaded.teacher_layers == (0, 3)
    assert loaded.rank == 8
    assert min(loaded.held_out_cosine) > 0.6
    assert all(0.3 < explained <= 1 for explained in loaded.explained_variance)
    assert "held-out cosine" in terminal
    with pytest.raises(ValueError, match="has 4 layers of width 128, not 2 of 64"):
        bridge.check(out, student=configs["teacher"], teacher=configs["teacher"])


def test_second_stage_starts_where_the_first_ended(fitted, world):
    # On a solution that nothing was fitted on, through the loss that trains.
    loaded = bridge.load(fitted[0], device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(world / "student")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Compute 31-4+7"}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    response = tokenizer("31-4=27\n27+7=34\n\\boxed{34}", add_special_tokens=False).input_ids
    with torch.no_grad():
        student, teacher = (
            [
                layer[0, len(prompt) :]
                for layer in AutoModelForCausalLM.from_pretrained(world / role, dtype=torch.float32)
                .base_model(torch.tensor([prompt + response]), output_hidden_states=True)
                .hidden_states[1:]
            ]
            for role in ("student", "teacher")
        )
    result = hidden_mse(
        student=student,
        teacher=[teacher[layer] for layer in loaded.teacher_layers],
        weights=torch.full((len(response),), 1 / len(response)),
        normalize=True,
        projections=loaded.projections,
    )
    assert result["hidden_cosine"].mean().item() == pytest.approx(sum(loaded.held_out_cosine) / 2, abs=0.15)
