"""The hash that tells a model's weights from others."""

import pytest
from safetensors.torch import load_file, save_file

from recipe.trd.oprd.model_facts import weights_fingerprint


@pytest.mark.usefixtures("pair")
def test_fingerprint_is_of_contents_and_not_of_files(tmp_path):
    whole = weights_fingerprint(str(tmp_path / "student"))
    tensors = load_file(tmp_path / "student" / "model.safetensors")
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    names = sorted(tensors, reverse=True)
    save_file({name: tensors[name] for name in names[:5]}, sharded / "model-00001-of-00002.safetensors")
    save_file({name: tensors[name] for name in names[5:]}, sharded / "model-00002-of-00002.safetensors")
    assert weights_fingerprint(str(sharded)) == whole
    tensors[names[3]].view(-1)[0] += 1e-3
    save_file(tensors, tmp_path / "student" / "model.safetensors")
    assert weights_fingerprint(str(tmp_path / "student")) != whole
