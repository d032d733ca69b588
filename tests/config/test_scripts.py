"""The run scripts: what they hand to Python composes, and twins differ in what their comments say."""

import os
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    "run_trd_tiny_cpu.sh": "trd_opd",
    "run_opd_tiny_cpu.sh": "opd",
    "run_grpo_tiny_cpu.sh": "grpo",
    "run_trd_opsd_tiny_cpu.sh": "trd_opsd",
    "run_opsd_tiny_cpu.sh": "opsd",
}


def overrides_of(script, *arguments, **knobs):
    """What the script hands to `recipe.trd.main`, with `echo` in the place of Python."""
    environment = {"PATH": os.environ["PATH"], "PYTHON": "echo", **knobs}
    command = ["bash", str(ROOT / "scripts" / script), *arguments]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    start, *overrides = printed.splitlines()[-1].removeprefix("-m ").split(" ")
    assert start == "recipe.trd.main"
    return overrides


@pytest.mark.parametrize(("script", "method"), SCRIPTS.items())
def test_it_composes_and_the_users_overrides_come_last(script, method):
    overrides = overrides_of(script, "trainer.total_training_steps=7", SEED="5", TOTAL_STEPS="9")
    assert overrides[-1] == "trainer.total_training_steps=7"
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        config = compose("trd_trainer", overrides=overrides)
    assert config.trd.method == method
    assert config.data.seed == config.actor_rollout_ref.rollout.seed == 5
    assert config.trainer.total_training_steps == 7
    assert config.trainer.default_local_dir == f"outputs/{method}-tiny-seed5"


def test_twins_differ_in_method_folder_and_the_knobs_that_they_name():
    trd, opd, grpo, trd_opsd, opsd = (dict(item.split("=", 1) for item in overrides_of(script)) for script in SCRIPTS)

    def differing(other):
        return {key for key in trd if trd[key] != other[key]}

    assert trd.keys() == opd.keys() == grpo.keys() == trd_opsd.keys()
    common = {"method", "trainer.default_local_dir", "actor_rollout_ref.actor.optim.lr"}
    assert differing(opd) == common
    assert differing(trd_opsd) == {"method", "model", "trainer.default_local_dir"}
    signal = {"actor_rollout_ref.rollout.temperature", "trd.objective.entry_clip"}
    assert opsd.keys() - trd.keys() == signal
    assert differing(opsd) >= common | {"model", "trainer.total_training_steps"}
    assert differing(grpo) == common | {"actor_rollout_ref.rollout.n", "data.train_batch_size"}
