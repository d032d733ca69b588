"""Suggestions for what Hydra does not know."""

import subprocess
import sys
from pathlib import Path

import pytest

from recipe.trd.config.misspelled import suggestions

ROOT = Path(__file__).parents[4]
RUN = ["method=trd_opd", "model=tiny", "data=tiny_world", "cluster=cpu"]


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        (
            "trd.rewrite.temprature=0.5",
            "trd.rewrite.temprature is no key; did you mean trd.rewrite.temperature?",
        ),
        ("data.train_batchsize=4", "data.train_batchsize is no key; did you mean data.train_batch_size?"),
        (
            "actor_rollout_ref.actor.optim.learning_rate=1",
            "actor_rollout_ref.actor.optim.learning_rate is no key; did you mean ",
        ),
        ("trainer.total_steps=3", "trainer.total_steps is no key; did you mean trainer."),
        ("metod=trd_opd", "metod is no key; did you mean method?"),
        ("method=trd_odp", "method=trd_odp is not there; did you mean trd_opd?"),
        ("cluster=xyz", "cluster=xyz is not there; choose from cpu, gpu, gpu_nodes"),
    ],
)
def test_what_was_meant(argument, line):
    (found,) = suggestions([*[one for one in RUN if not argument.startswith(one.split("=")[0] + "=")], argument])
    assert found.startswith(line)


@pytest.mark.parametrize(
    "arguments",
    [
        RUN,
        [*RUN, "trd.rewrite.temperature=0.5", "data.train_batch_size=4"],
        [*RUN, "+trd.new_key=1", "experiment=[lora,thinking_teacher]", "--cfg", "job"],
        [*RUN, "hydra/job_logging=stdout"],
        [*RUN, "not an override"],
    ],
)
def test_nothing_to_say(arguments):
    assert suggestions(arguments) == []


def test_the_command_says_it():
    command = [sys.executable, "-m", "recipe.trd.main", *RUN, "trd.rewrite.temprature=0.5"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("cannot start: trd.rewrite.temprature is no key; did you mean")
