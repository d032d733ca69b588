import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recipe.trd.evaluate import model_weights
from verl_ext.runtime.weight_files import hash_tensors


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.a.weight": (4, 3), "model.b.weight": (5,), "lm_head.weight": (3, 2)}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def save(folder: Path, *parts: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        save_file(part, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
    return folder


def compare(model: Path, base: Path) -> model_weights.BaseComparison:
    return model_weights.compare(hash_tensors(model), hash_tensors(base))


def test_same_weights_are_equal_to_base_in_another_format_too(tmp_path, weights):
    narrow = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    base = save(tmp_path / "base", narrow)
    exported = save(tmp_path / "exported", {name: tensor.float() for name, tensor in narrow.items()})
    for model in (base, exported):
        found = compare(model, base)
        assert (found.equal, found.num_tensors, found.num_changed, found.relative_change) == (True, 3, 0, 0.0)


def test_trained_weights_differ_by_what_was_moved(tmp_path, weights):
    moved = {**weights, "model.b.weight": weights["model.b.weight"] * 1.01}
    found = compare(save(tmp_path / "model", moved), save(tmp_path / "base", weights))
    assert (found.equal, found.num_changed) == (False, 1)
    assert found.relative_change == pytest.approx(0.01, rel=1e-4)


def test_tensors_that_one_side_lacks_are_listed_and_do_not_decide(tmp_path, weights):
    tied = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    found = compare(save(tmp_path / "model", weights), save(tmp_path / "base", tied))
    assert found.equal
    assert (found.only_in_model, found.only_in_base) == (("lm_head.weight",), ())


def test_models_that_cannot_be_compared_are_refused(tmp_path, weights):
    model = save(tmp_path / "model", weights)
    other = save(tmp_path / "other", {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="no tensor name in common"):
        compare(model, other)
    wide = save(tmp_path / "wide", {**weights, "model.b.weight": torch.zeros(7)})
    with pytest.raises(ValueError, match=r"shape \(5,\) in the model and \(7,\)"):
        compare(model, wide)
    broken = save(tmp_path / "broken", {**weights, "model.b.weight": torch.full((5,), math.nan)})
    with pytest.raises(ValueError, match="not finite"):
        compare(broken, model)


def test_step_of_a_training_run_is_a_model_when_it_holds_one(tmp_path, weights):
    step = tmp_path / "global_step_3"
    exported = save(step / "actor" / "huggingface", weights)
    assert model_weights.resolve(str(step)) == exported
    assert model_weights.resolve(str(step / "actor")) == exported


@pytest.mark.parametrize("given", [".", "actor"])
def test_shards_of_the_trainer_are_refused_with_the_command_that_exports_them(tmp_path, given):
    step = tmp_path / "global_step_3"
    # As verl saves without hf_model: configuration and tokenizer, but no weights that anybody else reads.
    (step / "actor" / "huggingface").mkdir(parents=True)
    (step / "actor" / "huggingface" / "config.json").touch()
    (step / "actor" / "model_world_size_1_rank_0.pt").touch()
    with pytest.raises(ValueError, match=re.escape(f"python -m recipe.trd.export {step / given} DIR, then evaluate")):
        model_weights.resolve(str(step / given))


def test_folder_without_safetensors_and_unknown_names_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"holds no \*\.safetensors"):
        model_weights.resolve(str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="neither a folder nor a model that the hub gives"):
        model_weights.resolve("nobody/nothing-of-this-name")


def save_adapter(folder: Path, scale: float) -> Path:
    folder.mkdir(parents=True)
    prefix = "base_model.model.model.layers.0.q_proj"
    tensors = {f"{prefix}.lora_A.weight": torch.ones(2, 4), f"{prefix}.lora_B.weight": scale * torch.ones(4, 2)}
    save_file(tensors, folder / model_weights.ADAPTER_WEIGHTS)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    return folder


def test_adapter_beside_base_weights_is_not_forgotten(tmp_path, weights):
    model = save(tmp_path / "merged", weights)
    adapter = save_adapter(model / model_weights.ADAPTER_FOLDER, 1.0)
    with pytest.raises(ValueError, match=r"add --adapter .*lora_adapter"):
        model_weights.check_adapter(model, None)
    model_weights.check_adapter(model, adapter)
    with pytest.raises(ValueError, match=r"holds no adapter_model\.safetensors"):
        model_weights.check_adapter(model, tmp_path)


@pytest.mark.parametrize(("scale", "zero"), [(0.0, True), (1e-6, False)])
def test_adapter_that_changes_nothing_is_recognised(tmp_path, scale, zero):
    assert model_weights.adapter_is_zero(save_adapter(tmp_path / "adapter", scale)) is zero
