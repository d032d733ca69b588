"""Servers that get other weights in the middle of a run, or lose an adapter: the run ends within a step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RUN = [
    *("model=tiny", "data=tiny_world", "cluster=cpu", "data.train_batch_size=16", "trainer.total_training_steps=4"),
    *("trainer.val_before_train=False", "trainer.test_freq=-1", "trainer.save_freq=-1", "trainer.logger=[file]"),
]
LORA = ["method=opsd", "actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.actor.optim.lr=3e-2"]


@pytest.mark.parametrize(
    ("which", "overrides", "message"),
    [
        ("teacher", ["method=trd_opd"], "the teacher's server now and at the first step differ by"),
        ("student", ["method=trd_opd"], "the student's server and the trainer differ by"),
        ("adapter", LORA, "the student's adapter is not in force on its server"),
    ],
)
def test_other_weights_end_the_run_within_a_step(tmp_path, engine_environment, which, overrides, message):
    environment = {**os.environ, **engine_environment, "PYTHONPATH": str(Path(__file__).parent)}
    terminal = tmp_path / "terminal"
    command = [sys.executable, "-m", "foreign_weights", which, str(tmp_path / "run"), *RUN, *overrides]
    with terminal.open("w") as out:
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, timeout=400, check=False
        )
    text = terminal.read_text(errors="replace")
    assert ended.returncode != 0, text[-4000:]
    assert message in text, text[-4000:]
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [f'"step": {step}' in line or f'"step":{step}' in line for step, line in enumerate(metrics, 1)] == [True]
