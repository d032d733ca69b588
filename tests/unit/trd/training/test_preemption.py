"""Saving and stopping on request: when the callback acts, and that verl's loop ends as it expects."""

import ast
import inspect
import textwrap
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.checkpoint_callback import build_checkpoint_callback
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from recipe.trd.training import preemption


@pytest.fixture
def stop_file(tmp_path, monkeypatch):
    path = tmp_path / "stop"
    monkeypatch.setenv(preemption.STOP_FILE, str(path))
    monkeypatch.setattr(preemption, "INTERVAL_S", 0.01)
    return path


def configuration(save_freq=-1):
    callback = f"{preemption.__name__}.{preemption.StopOnRequest.__name__}"
    return OmegaConf.create({"trainer": {"save_freq": save_freq, "checkpoint_callback_class": callback}})


def run(config, *, total_steps, request_at=None, stop_file=None):
    """verl's loop as far as it saves: the steps that were done, and those that were saved."""
    trainer = SimpleNamespace(total_training_steps=total_steps)
    callback = build_checkpoint_callback(config)
    done, saved, step = [], [], 1
    while step <= trainer.total_training_steps:
        is_last_step = step >= trainer.total_training_steps
        if step == request_at:
            stop_file.touch()
            assert callback._requested.wait(5)
        done.append(step)
        if config.trainer.save_freq > 0 and (is_last_step or step % config.trainer.save_freq == 0):
            saved.append(step)
            callback.on_save(trainer=trainer, global_step=step, checkpoint_dir=f"global_step_{step}")
        step += 1
    return done, saved


@pytest.mark.parametrize("save_freq", [-1, 100])
def test_a_request_saves_the_step_and_makes_it_the_last(stop_file, save_freq):
    assert run(configuration(save_freq), total_steps=9, request_at=4, stop_file=stop_file) == ([1, 2, 3, 4], [4])
    assert preemption.stopped_file(stop_file).read_text() == "4\n"


def test_nothing_happens_without_a_request(stop_file):
    assert run(configuration(2), total_steps=5) == ([1, 2, 3, 4, 5], [2, 4, 5])
    assert not preemption.stopped_file(stop_file).exists()


def test_a_request_in_the_last_step_is_not_a_stop(stop_file):
    assert run(configuration(), total_steps=3, request_at=3, stop_file=stop_file) == ([1, 2, 3], [3])
    assert not preemption.stopped_file(stop_file).exists()


def test_outside_a_job_nobody_looks(monkeypatch, tmp_path):
    monkeypatch.delenv(preemption.STOP_FILE, raising=False)
    assert run(configuration(2), total_steps=2) == ([1, 2], [2])


def test_verls_loop_reads_what_the_callback_changes():
    # The frequency anew in every step, and the number of steps before the next one, from these very places.
    tree = ast.parse(textwrap.dedent(inspect.getsource(PPOTrainer.fit)))
    (loop,) = [node for node in ast.walk(tree) if isinstance(node, ast.While)]
    assert "self.global_steps <= self.total_training_steps" in ast.unparse(loop.test)
    assert "self.config.trainer.save_freq > 0" in ast.unparse(loop)
    assert "self.checkpoint_callback = build_checkpoint_callback(config)" in inspect.getsource(PPOTrainer.__init__)
    assert "self.config = config" in inspect.getsource(PPOTrainer.__init__)
