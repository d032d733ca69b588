"""Checkpoints of real runs, of all parameters and of LoRA, exported by the command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe.trd.export import checkpoint, texts

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
RANK, ALPHA = 8, 16


def export(checkpoint: Path, out: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "recipe.trd.export", str(checkpoint), str(out), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout + done.stderr


def result(out: Path) -> dict:
    return json.loads((out / "export.json").read_text())


@pytest.fixture(scope="module")
def lora_run(launch, tmp_path_factory):
    """Two steps of TRD with adapters on all linear layers, a checkpoint and a validation."""
    run = launch(
        tmp_path_factory.mktemp("lora") / "run",
        "method=trd_opd",
        "data.train_batch_size=16",
        "data.val_max_samples=32",
        "trainer.val_before_train=False",
        "trainer.total_training_steps=2",
        "trainer.test_freq=2",
        "trainer.save_freq=2",
        "actor_rollout_ref.actor.optim.lr=2e-3",
        f"actor_rollout_ref.model.lora_rank={RANK}",
        f"actor_rollout_ref.model.lora_alpha={ALPHA}",
        "actor_rollout_ref.model.target_modules=all-linear",
        # The server starts with the base's weights, and gets the adapter alone.
        "actor_rollout_ref.rollout.load_format=safetensors",
    )
    assert run.wait() == 0, run.text()[-4000:]
    return run


def test_all_parameters_are_those_of_the_trainer(trd_run, tmp_path):
    """verl's own `hf_model` of the same step holds the same weights."""
    code, said = export(trd_run.folder / "global_step_3", tmp_path / "out")
    assert code == 0, said
    ours = load_file(tmp_path / "out" / "model.safetensors")
    verls = load_file(trd_run.folder / "global_step_3" / "actor" / "huggingface" / "model.safetensors")
    assert ours.keys() == verls.keys()
    for name, value in ours.items():
        assert torch.equal(value.to(verls[name].dtype), verls[name]), name
    written = result(tmp_path / "out")
    assert written["kind"] == "full"
    assert written["differences_nats"]["exported"]["max"] == 0
    assert written["differences_nats"]["moved"]["max"] > 0.01
    assert written["text"]["num_plain_prompts"] == 0


def test_adapters_are_merged(lora_run, world, tmp_path):
    step = lora_run.folder / "global_step_2"
    code, said = export(step, tmp_path / "merged")
    assert code == 0, said
    assert "trainer - exported" in said
    written = result(tmp_path / "merged")
    assert written["kind"] == "merged"
    assert (written["adapters"]["r"], written["adapters"]["lora_alpha"]) == (RANK, ALPHA)
    assert (written["adapters"]["num_adapters"], written["adapters"]["num_idle"]) == (14, 0)
    assert written["weights_against_base"]["num_changed"] == 14
    assert written["differences_nats"]["moved"]["max"] > 0.01
    assert written["text"]["num_texts"] == 32
    assert written["text"]["num_plain_prompts"] == 0
    code, said = export(step, tmp_path / "adapter", "--adapter-only")
    assert code == 0, said
    base = AutoModelForCausalLM.from_pretrained(world / "student")
    beside = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.arange(3, 60).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, beside(ids).logits, atol=1e-4, rtol=1e-4)


def num_first_choices(folder, texts):
    """Tokens that the model itself would have chosen."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    same = 0
    for text in texts:
        with torch.no_grad():
            chosen = (
                model(torch.tensor([[*text.context, *text.tokens]])).logits[0, len(text.context) - 1 : -1].argmax(-1)
            )
        same += int((chosen == torch.tensor(text.tokens)).sum())
    return same


def test_exported_model_is_the_one_that_was_validated(lora_run, world, tmp_path):
    """The server, which got the adapter from the trainer, answered greedily; its answers are the exported model's."""
    step = checkpoint.find(lora_run.folder / "global_step_2")
    code, said = export(step.folder, tmp_path / "out")
    assert code == 0, said
    tokenizer = AutoTokenizer.from_pretrained(step.side_files)
    held_out = texts.held_out(step, tokenizer, path=None, num_texts=32, num_tokens=1_000_000)
    same, by_base = (num_first_choices(path, held_out.texts) for path in (tmp_path / "out", world / "student"))
    assert same >= 0.995 * held_out.num_tokens
    assert same > by_base


def test_checkpoint_without_its_adapters_is_not_exported(lora_run, tmp_path):
    """The weights of all B matrices are lost on the way."""
    copy = tmp_path / "run"
    shutil.copytree(lora_run.folder / "global_step_2" / "actor", copy / "global_step_2" / "actor")
    shutil.copytree(lora_run.folder / "validation", copy / "validation")
    shutil.copy(lora_run.folder / "config.yaml", copy / "config.yaml")
    shard = copy / "global_step_2" / "actor" / "model_world_size_1_rank_0.pt"
    tensors = torch.load(shard)
    for name, value in tensors.items():
        if "lora_B" in name:
            value._local_tensor.zero_()
    torch.save(tensors, shard)
    code, said = export(copy / "global_step_2", tmp_path / "out")
    assert code == 1
    assert "adapters were dropped" in said
    assert list(tmp_path.iterdir()) == [copy]
