"""What is stored of a bridge, and folders and models that are refused."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipe.trd.oprd import bridge, model_facts
from recipe.trd.oprd.bridge import Bridge
from recipe.trd.oprd.layer_map import layer_map
from verl_ext.divergence import Projection

RANK = 4


@pytest.fixture
def fitted(pair):
    projections = tuple(
        Projection(student=torch.randn(RANK, 8), teacher=torch.randn(RANK, 16), teacher_mean=torch.randn(16))
        for _ in range(2)
    )
    return Bridge(
        projections=projections,
        teacher_layers=layer_map(2, 3),
        student=model_facts.facts(pair["student"]),
        teacher=model_facts.facts(pair["teacher"]),
        explained_variance=(0.8, 0.9),
        held_out_cosine=(0.95, 0.97),
        provenance={"num_rows": 1000, "settings": {"seed": 0}},
    )


def test_what_is_saved_is_loaded(fitted, pair, tmp_path):
    bridge.save(tmp_path / "bridge", fitted)
    bridge.check(tmp_path / "bridge", **pair)
    loaded = bridge.load(tmp_path / "bridge", device="cpu")
    for got, expected in zip(loaded.projections, fitted.projections, strict=True):
        assert {name: tensor.tolist() for name, tensor in vars(got).items()} == {
            name: tensor.tolist() for name, tensor in vars(expected).items()
        }
    rest = [
        {field.name: getattr(each, field.name) for field in dataclasses.fields(Bridge) if field.name != "projections"}
        for each in (loaded, fitted)
    ]
    assert rest[0] == rest[1]
    assert loaded.rank == RANK


def test_folder_without_a_bridge_is_refused(fitted, pair, tmp_path):
    for read in (lambda: bridge.load(tmp_path, device="cpu"), lambda: bridge.check(tmp_path, **pair)):
        with pytest.raises(ValueError, match=r"holds no bridge.*python -m recipe.trd.fit_bridge"):
            read()
    bridge.save(tmp_path, fitted)
    (tmp_path / bridge.MAPS).unlink()
    with pytest.raises(ValueError, match=r"bridge.safetensors cannot be read"):
        bridge.load(tmp_path, device="cpu")
    with pytest.raises(ValueError, match=r"holds no bridge.safetensors"):
        bridge.check(tmp_path, **pair)


def test_files_that_do_not_belong_together_are_refused(fitted, tmp_path):
    bridge.save(tmp_path, fitted)
    tensors = load_file(tmp_path / bridge.MAPS)
    save_file({**tensors, "student.1": torch.zeros(RANK + 1, 8)}, tmp_path / bridge.MAPS)
    with pytest.raises(ValueError, match="do not belong together"):
        bridge.load(tmp_path, device="cpu")
    save_file({**tensors, "student.1": torch.full((RANK, 8), float("nan"))}, tmp_path / bridge.MAPS)
    with pytest.raises(ValueError, match="not finite"):
        bridge.load(tmp_path, device="cpu")


def test_other_format_is_refused(fitted, tmp_path):
    bridge.save(tmp_path, fitted)
    card = json.loads((tmp_path / bridge.CARD).read_text())
    (tmp_path / bridge.CARD).write_text(json.dumps({**card, "format": 99}))
    with pytest.raises(ValueError, match="another version"):
        bridge.load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("role", "shape", "message"),
    [
        ("student", {"hidden_size": 12, "num_layers": 2}, "has 2 layers of width 12, not 2 of 8"),
        ("teacher", {"hidden_size": 16, "num_layers": 4}, "has 4 layers of width 16, not 3 of 16"),
        ("teacher", {"hidden_size": 16, "num_layers": 3, "seed": 2}, "has other weights"),
        ("student", {"hidden_size": 8, "num_layers": 2, "seed": 2}, "has other weights"),
    ],
)
def test_other_models_are_refused(fitted, pair, make_model, tmp_path, role, shape, message):
    bridge.save(tmp_path / "bridge", fitted)
    pair[role] = make_model(tmp_path / "other", **shape)
    with pytest.raises(ValueError, match=rf"{role} .*other, {message}: fit one for this pair with python -m") as error:
        bridge.check(tmp_path / "bridge", **pair)
    assert f"{role}={tmp_path / 'other'}" in str(error.value)


def test_weights_that_are_not_here_are_not_compared(fitted, pair, tmp_path):
    bridge.save(tmp_path / "bridge", dataclasses.replace(fitted, teacher=dataclasses.replace(fitted.teacher)))
    (tmp_path / "teacher" / "model.safetensors").unlink()
    assert model_facts.facts(pair["teacher"]).fingerprint is None
    bridge.check(tmp_path / "bridge", **pair)
    assert model_facts.weights_fingerprint("nobody/has-this-model") is None
    assert model_facts.weights_fingerprint("") is None
