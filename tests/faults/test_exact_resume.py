"""A run that is killed three times and resumed ends with the weights and metrics of one that was not, bit for bit."""

import contextlib
import json
import os
import random
import signal
import time

import pytest
import torch
from e2e.conftest import SMALL, Run

from verl_ext.runtime import checkpoints

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STEPS = 6
EXACT = [
    *("model=tiny", "data=tiny_world", "cluster=cpu", *SMALL, f"trainer.total_training_steps={STEPS}"),
    *("trainer.save_freq=1", "trainer.test_freq=-1", "trainer.logger=[file]"),
    "actor_rollout_ref.actor.fsdp_config.full_determinism=True",
    # Sampling, with a seed for each request; what a server says must not depend on what else it is asked.
    "actor_rollout_ref.rollout.max_num_seqs=1",
    "actor_rollout_ref.rollout.enable_prefix_caching=False",
]
SELF = [
    *("method=trd_opsd", "actor_rollout_ref.model.lora_rank=8", "trd.teacher.weights=ema", "trd.teacher.ema_decay=0.9"),
    "actor_rollout_ref.actor.optim.lr=1e-2",
]
OF_THE_MACHINE = ("timing", "perf/", "trd/rewrite_overlap_frac", "memory", "cpu_")
"""Beginnings or parts of metrics that are times or memory."""


def metrics_of(run_dir):
    steps = {}
    for path in sorted(run_dir.glob("metrics*.jsonl"), key=lambda path: path.stat().st_mtime):
        for line in path.read_text().splitlines():
            found = json.loads(line)
            steps.setdefault(found["step"], {}).update(found["data"])
    return {
        step: {name: value for name, value in data.items() if not any(part in name for part in OF_THE_MACHINE)}
        for step, data in steps.items()
    }


def kill_all(run):
    for process in [*run.descendants(), *([] if run.process.poll() is not None else [run.process])]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    run.process.wait()


def assert_equal(one, other, path=""):
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        one, other = (getattr(value, "_local_tensor", value) for value in (one, other))
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{path}/{index}")


def test_three_kills_change_nothing(tmp_path):
    whole = Run(tmp_path / "whole", [*EXACT, *SELF], "recipe.trd.main")
    assert whole.wait(600) == 0, whole.text()[-4000:]
    moments = random.Random(0)
    killed = tmp_path / "killed"
    for number in range(4):
        run = Run(killed, [*EXACT, *SELF], "recipe.trd.main")
        if number == 3:
            assert run.wait(600) == 0, run.text()[-4000:]
            break
        run.wait_for(f"step  {number + 1}/{STEPS}".replace("  ", " "))
        time.sleep(moments.uniform(0, 3))
        kill_all(run)
    last = [folder / f"global_step_{STEPS}" / "actor" for folder in (whole.folder, killed)]
    states = [{path.name: path for path in folder.glob("*.pt")} for folder in last]
    assert states[0].keys() == states[1].keys()
    assert any(name.startswith("ema") for name in states[0])
    for name in states[0]:
        one, other = (torch.load(state[name], map_location="cpu", weights_only=False) for state in states)
        assert_equal(one, other, name)
    one, other = metrics_of(whole.folder), metrics_of(killed)
    assert one.keys() == other.keys() == set(range(1, STEPS + 1))
    different = {
        (step, name): (value, other[step].get(name))
        for step, data in one.items()
        for name, value in data.items()
        if value != other[step].get(name)
    }
    assert different == {}
    assert checkpoints.newest(killed)[0].name == f"global_step_{STEPS}"
