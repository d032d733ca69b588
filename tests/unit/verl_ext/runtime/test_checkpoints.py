"""Checkpoints that are whole or not there."""

import os

import pytest
import torch

from verl_ext.runtime import checkpoints


def write(folder, *, value=1.0):
    (folder / "actor").mkdir(parents=True)
    torch.save({"w": torch.full((1000,), value)}, folder / "actor" / "model.pt")
    (folder / "actor" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def save(tmp_path):
    def make(step, **changes):
        written = write(tmp_path / checkpoints.ASIDE / f"global_step_{step}", **changes)
        return checkpoints.publish(written, tmp_path)

    return make


def test_what_is_published_is_the_newest(tmp_path, save):
    folders = [save(1), save(2)]
    assert [checkpoints.step_of(folder) for folder in folders] == ["1", "2"]
    assert checkpoints.newest(tmp_path) == (tmp_path / "global_step_2", {})
    assert (tmp_path / checkpoints.MARK).read_text() == "2"
    assert not list((tmp_path / checkpoints.ASIDE).iterdir())


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path, save):
    save(1, value=1.0)
    folder = save(1, value=2.0)
    assert torch.load(folder / "actor" / "model.pt")["w"][0] == 2
    assert checkpoints.newest(tmp_path) == (folder, {})


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def overwrite_the_end(path):
    data = bytearray(path.read_bytes())
    data[-100:] = bytes(100)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda folder: cut(folder / "actor" / "model.pt"), "model.pt: "),
        (lambda folder: (folder / "actor" / "model.pt").unlink(), "model.pt: it is missing"),
        (lambda folder: (folder / "actor" / "config.json").write_text(""), "config.json: 0 bytes, 2 were written"),
        (lambda folder: overwrite_the_end(folder / "actor" / "model.pt"), "its end is missing"),
        (lambda folder: (folder / checkpoints.MANIFEST).write_text("{"), "Expecting"),
        (lambda folder: (folder / checkpoints.MANIFEST).write_text("[]"), ""),
    ],
    ids=["cut", "missing", "emptied", "end overwritten", "manifest cut", "manifest of another kind"],
)
def test_a_damaged_one_is_passed_over(tmp_path, save, harm, says):
    whole, broken = save(1), save(2)
    harm(broken)
    found, damaged = checkpoints.newest(tmp_path)
    assert found == whole
    assert list(damaged) == [broken]
    assert says in damaged[broken]


def test_without_a_whole_one_there_is_none(tmp_path, save):
    cut(save(1) / "actor" / "model.pt")
    assert checkpoints.newest(tmp_path)[0] is None
    assert checkpoints.saved(tmp_path) != []
    assert checkpoints.newest(tmp_path / "elsewhere") == (None, {})


def test_what_is_not_whole_is_never_published(tmp_path, save):
    first = save(1)
    written = write(tmp_path / checkpoints.ASIDE / "global_step_2")
    cut(written / "actor" / "model.pt")
    with pytest.raises(OSError, match="its end is missing"):
        checkpoints.publish(written, tmp_path)
    (tmp_path / checkpoints.ASIDE / "global_step_3").mkdir()
    with pytest.raises(OSError, match="nothing was written"):
        checkpoints.publish(tmp_path / checkpoints.ASIDE / "global_step_3", tmp_path)
    assert checkpoints.newest(tmp_path) == (first, {})
    assert (tmp_path / checkpoints.MARK).read_text() == "1"


def test_steps_after_the_one_that_was_saved_last_are_of_another_past(tmp_path, save):
    # A run that went back to step 1 and saved step 2: a folder of step 9 is not its newest.
    save(9)
    save(2)
    assert [checkpoints.step_of(folder) for folder in checkpoints.saved(tmp_path)] == ["2"]
    assert checkpoints.newest(tmp_path, below=2) == (None, {})


def test_verls_own_checkpoints_are_known(tmp_path):
    write(tmp_path / "global_step_4")
    assert checkpoints.newest(tmp_path) == (None, {})  # without the mark verl was not done
    (tmp_path / checkpoints.MARK).write_text("4")
    assert checkpoints.newest(tmp_path) == (tmp_path / "global_step_4", {})


def test_the_ones_that_were_saved_last_are_kept(tmp_path, save):
    for step in (9, 1, 2):
        save(step)
    (tmp_path / "global_step_x").mkdir()
    checkpoints.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.glob("global_step_*")) == [
        "global_step_1",
        "global_step_2",
        "global_step_x",
    ]
