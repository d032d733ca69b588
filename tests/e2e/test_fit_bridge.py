"""A bridge between the tiny world's student (2 layers of 64) and teacher (4 of 128), fitted on real rollouts."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from recipe.trd.oprd import bridge
from verl_ext.divergence import hidden_mse

pytestmark = pytest.mark.e2e


def test_maps_fit_and_are_for_this_pair(fitted_bridge, world):
    out, terminal = fitted_bridge
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


def test_second_stage_starts_where_the_first_ended(fitted_bridge, world):
    # On a solution that nothing was fitted on, through the loss that trains.
    loaded = bridge.load(fitted_bridge[0], device="cpu")
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
