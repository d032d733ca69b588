"""The fingerprint of a model's weights."""

import hashlib
import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from verl_ext.runtime.weight_files import fingerprint, hash_tensors


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.a.weight": (4, 3), "model.b.weight": (5,), "lm_head.weight": (3, 2), "scale": ()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def save(folder, *parts):
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        save_file(part, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("first_rows_only", [False, True])
def test_fingerprint_does_not_depend_on_how_tensors_lie_in_files(tmp_path, weights, first_rows_only):
    names = list(weights)
    whole = save(tmp_path / "whole", weights)
    parts = save(tmp_path / "parts", {names[2]: weights[names[2]]}, {n: weights[n] for n in names if n != names[2]})
    one, other = (hash_tensors(folder, first_rows_only=first_rows_only) for folder in (whole, parts))
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize("first_rows_only", [False, True])
@pytest.mark.parametrize("change", ["value", "name", "shape", "dtype"])
def test_fingerprint_changes_with_the_contents(tmp_path, weights, change, first_rows_only):
    other = dict(weights)
    tensor = other.pop("model.b.weight").clone()
    if change == "value":
        tensor[0] = torch.nextafter(tensor[0], torch.tensor(math.inf))
    other["model.c.weight" if change == "name" else "model.b.weight"] = {
        "shape": tensor.reshape(5, 1),
        "dtype": tensor.to(torch.bfloat16),
    }.get(change, tensor)
    folders = save(tmp_path / "a", weights), save(tmp_path / "b", other)
    one, two = (fingerprint(hash_tensors(folder, first_rows_only=first_rows_only)) for folder in folders)
    assert one != two


def test_first_rows_leave_out_the_others(tmp_path, weights):
    changed = {**weights, "model.a.weight": weights["model.a.weight"].clone()}
    changed["model.a.weight"][1:] += 1
    folders = save(tmp_path / "a", weights), save(tmp_path / "b", changed)
    assert len({fingerprint(hash_tensors(folder, first_rows_only=True)) for folder in folders}) == 1
    assert len({fingerprint(hash_tensors(folder)) for folder in folders}) == 2


def test_first_rows_are_those_that_the_library_reads(tmp_path, weights):
    # Fingerprints are stored in files, e.g. in the card of a bridge: what is hashed must stay the same.
    weights = {name: tensor.to(torch.bfloat16) if "a" in name else tensor for name, tensor in weights.items()}
    folder = save(tmp_path / "model", weights)
    digests = {}
    with safe_open(folder / "model-0.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            digest = hashlib.sha256(json.dumps([name, part.get_dtype(), part.get_shape()]).encode())
            row = part[:1] if part.get_shape() else file.get_tensor(name)
            digest.update(row.contiguous().flatten().view(torch.uint8).numpy().tobytes())
            digests[name] = digest.hexdigest()
    expected = hashlib.sha256("\n".join(digests[name] for name in sorted(digests)).encode()).hexdigest()
    assert fingerprint(hash_tensors(folder, first_rows_only=True)) == expected


@pytest.mark.parametrize("first_rows_only", [False, True])
def test_damaged_files_are_refused(tmp_path, weights, first_rows_only):
    folder = save(tmp_path / "model", weights)
    content = (folder / "model-0.safetensors").read_bytes()
    (folder / "model-0.safetensors").write_bytes(content[:-1])
    with pytest.raises(ValueError, match="ends before its tensor"):
        hash_tensors(folder, first_rows_only=first_rows_only)
    (folder / "model-0.safetensors").write_bytes(content[:8] + b"x" * 40)
    with pytest.raises(ValueError, match="no safetensors file, or a damaged one"):
        hash_tensors(folder, first_rows_only=first_rows_only)


def test_tensor_in_two_files_is_refused_and_a_folder_without_weights_is_empty(tmp_path, weights):
    with pytest.raises(ValueError, match=r"tensor .* is in model-0\.safetensors and in model-1\.safetensors"):
        hash_tensors(save(tmp_path / "twice", weights, weights))
    (tmp_path / "empty").mkdir()
    assert hash_tensors(tmp_path / "empty") == {}
