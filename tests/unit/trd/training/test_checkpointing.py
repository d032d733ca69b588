"""What becomes of a checkpoint when writing or reading it goes wrong, with verl's trainer stood in for."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from ray.exceptions import ActorDiedError

from recipe.trd.training.checkpointing import SafeCheckpoints
from verl_ext.runtime import checkpoints


class Trainer:
    """Saves and loads as verl's does, as far as files go."""

    fails = None

    def _save_checkpoint(self):
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        (folder / "actor").mkdir(parents=True)
        torch.save({"step": self.global_steps}, folder / "actor" / "model.pt")
        if self.fails:
            raise self.fails
        self.kept_by_verl.append(self.config.trainer.max_actor_ckpt_to_keep)
        (folder.parent / checkpoints.MARK).write_text(str(self.global_steps))
        self.checkpoint_callback.on_save(trainer=self, global_step=0, checkpoint_dir=str(folder))

    def _load_checkpoint(self):
        mark = Path(self.config.trainer.default_local_dir) / checkpoints.MARK
        if not mark.exists():
            self.loaded = None
            return
        step = int(mark.read_text())
        if step in self.unreadable:
            raise self.unreadable[step]
        self.loaded = step


class SafeTrainer(SafeCheckpoints, Trainer):
    def __init__(self, run_dir, **settings):
        values = {"default_local_dir": str(run_dir), "max_actor_ckpt_to_keep": None, "resume_mode": "auto"}
        self.config = OmegaConf.create({"trainer": {**values, **settings}})
        OmegaConf.set_struct(self.config, True)
        self.global_steps, self.total_training_steps = 0, 10
        self.told, self.kept_by_verl, self.unreadable = [], [], {}
        self.checkpoint_callback = SimpleNamespace(on_save=lambda **said: self.told.append(said))

    def save(self, step):
        self.global_steps = step
        self._save_checkpoint()


@pytest.fixture
def make(tmp_path):
    return lambda **settings: SafeTrainer(tmp_path / "run", **settings)


def names(trainer):
    return sorted(path.name for path in Path(trainer.config.trainer.default_local_dir).iterdir())


def test_a_checkpoint_is_told_of_where_it_is(make):
    trainer = make(max_actor_ckpt_to_keep=2)
    for step in (1, 2, 3):
        trainer.save(step)
    assert names(trainer) == ["global_step_2", "global_step_3", checkpoints.MARK]
    assert trainer.kept_by_verl == [None] * 3  # verl would remove what it no longer finds
    assert [(said["global_step"], Path(said["checkpoint_dir"]).name) for said in trainer.told] == [
        (step, f"global_step_{step}") for step in (1, 2, 3)
    ]
    assert trainer.config.trainer.max_actor_ckpt_to_keep == 2


def test_a_full_disk_costs_one_checkpoint_and_no_other(make, capsys):
    trainer = make(max_actor_ckpt_to_keep=1)
    trainer.save(1)
    trainer.fails = OSError(errno.ENOSPC, "No space left on device")
    trainer.save(2)
    assert names(trainer) == ["global_step_1", checkpoints.MARK]
    assert len(trainer.told) == 1
    said = capsys.readouterr().out
    assert "checkpoint of step 2 could not be written: OSError: [Errno 28] No space left on device" in said
    assert Path(trainer.config.trainer.default_local_dir).name == "run"
    trainer.fails = None
    trainer.save(3)
    assert names(trainer) == ["global_step_3", checkpoints.MARK]


@pytest.mark.parametrize(("step", "error"), [(10, OSError("full")), (2, ActorDiedError())])
def test_the_last_checkpoint_and_dead_processes_are_no_warnings(make, step, error):
    trainer = make()
    trainer.save(1)
    trainer.fails = error
    with pytest.raises(type(error)):
        trainer.save(step)
    assert names(trainer) == ["global_step_1", checkpoints.MARK]


def test_the_newest_is_loaded(make):
    trainer = make()
    trainer._load_checkpoint()
    assert trainer.loaded is None
    for step in (1, 2):
        trainer.save(step)
    trainer._load_checkpoint()
    assert trainer.loaded == 2


def test_a_damaged_one_is_passed_over(make, capsys):
    trainer = make()
    for step in (1, 2, 3):
        trainer.save(step)
    run_dir = Path(trainer.config.trainer.default_local_dir)
    (run_dir / "global_step_3" / "actor" / "model.pt").write_bytes(b"")
    trainer.unreadable[2] = RuntimeError("PytorchStreamReader failed reading file data/0: CRC mismatch")
    trainer._load_checkpoint()
    assert trainer.loaded == 1
    assert (run_dir / checkpoints.MARK).read_text() == "1"
    said = capsys.readouterr().out
    assert "global_step_3 is damaged (actor/model.pt: 0 bytes" in said
    assert "global_step_2 cannot be read (RuntimeError: PytorchStreamReader" in said


def test_where_none_can_be_read_the_first_cause_ends_the_run(make):
    trainer = make()
    for step in (1, 2):
        trainer.save(step)
    trainer.unreadable = {1: RuntimeError("one"), 2: RuntimeError("two")}
    with pytest.raises(RuntimeError, match="two"):
        trainer._load_checkpoint()
    run_dir = Path(trainer.config.trainer.default_local_dir)
    for step in (1, 2):
        (run_dir / f"global_step_{step}" / "actor" / "model.pt").unlink()
    (run_dir / checkpoints.MARK).write_text("2")
    with pytest.raises(RuntimeError, match=r"no checkpoint in .* is whole; set trainer\.resume_mode=disable"):
        trainer._load_checkpoint()


def test_a_path_of_the_users_own_is_left_to_verl(make):
    trainer = make(resume_mode="resume_path")
    trainer.save(1)
    trainer.unreadable[1] = RuntimeError("as verl says it")
    with pytest.raises(RuntimeError, match="as verl says it"):
        trainer._load_checkpoint()


def test_bytes_that_were_changed_in_place_are_found(make, capsys):
    trainer = make()
    for step in (1, 2):
        trainer.save(step)
    path = Path(trainer.config.trainer.default_local_dir) / "global_step_2" / "actor" / "model.pt"
    torch.save({"w": torch.arange(1000.0)}, path)
    (path.parents[1] / checkpoints.MANIFEST).unlink()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))
    trainer._load_checkpoint()
    assert trainer.loaded == 1
    assert "global_step_2 is damaged (actor/model.pt: " in capsys.readouterr().out
