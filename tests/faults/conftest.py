"""One run that lives through one fault after the other."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from e2e.conftest import SMALL, Run

HERE = Path(__file__).parent

RUN = [
    *("method=trd_grpo", "model=tiny", "data=tiny_world", "cluster=cpu", *SMALL),
    *("trainer.total_training_steps=1000", "trainer.save_freq=1", "trainer.test_freq=-1", "trainer.logger=[file]"),
    *("trainer.max_actor_ckpt_to_keep=3", "trd.health_interval_s=3", "trd.faults.request_timeout_s=80"),
    *("trd.faults.reward_timeout_s=20", "trd.faults.restarts=5", f"data.reward_function={HERE / 'moody_reward.py'}"),
    "actor_rollout_ref.model.external_lib=faults_inside",
]


class FaultyRun:
    """A run, what it said, and the means to do something to it."""

    def __init__(self, folder: Path):
        self.folder, self.flags = folder, folder.parent / "flags"
        self.flags.mkdir()
        os.environ["FAULTS_DIR"] = str(self.flags)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        self.run: Run | None = None

    def start(self, *overrides: str) -> Run:
        self.run = Run(self.folder, [*RUN, *overrides], "recipe.trd.main")
        return self.run

    def inject(self, fault: str) -> None:
        """Have the processes do it to themselves; returns when one has."""
        flag = self.flags / fault
        flag.touch()
        self._until(lambda: not flag.exists(), f"the fault {fault} is taken up")

    def wait_for(self, text: str, timeout_s: float = 400) -> str:
        """What was said after the last such line."""
        self._until(lambda: text in self.text(), f"it says {text!r}", timeout_s)
        return self.text()

    def text(self) -> str:
        assert self.run is not None
        return self.run.text()

    def last_step(self) -> int:
        lines = [line for line in self.text().splitlines() if line.startswith("step ")]
        return int(lines[-1].split()[1].split("/")[0]) if lines else 0

    def wait_for_steps(self, number: int = 2) -> int:
        """Some more steps; the number of the last."""
        goal = self.last_step() + number
        self._until(lambda: self.last_step() >= goal, f"step {goal} is done")
        return self.last_step()

    def processes(self, name: str) -> list[psutil.Process]:
        """Processes of the run by the beginning of their names."""
        assert self.run is not None
        return sorted(
            (process for process in self.run.descendants() if process.name().startswith(name)),
            key=lambda process: process.create_time(),
        )

    def _until(self, holds, what: str, timeout_s: float = 400) -> None:
        assert self.run is not None
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert self.run.process.poll() is None, f"ended before {what}:\n{self.text()[-4000:]}"
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}:\n{self.text()[-4000:]}"
            time.sleep(0.3)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Iterator[FaultyRun]:
    made = FaultyRun(tmp_path_factory.mktemp("faults") / "run")
    made.start()
    made.wait_for_steps(1)
    yield made
    if made.run is not None and made.run.process.poll() is None:
        made.run.process.kill()
    sys.stdout.flush()
