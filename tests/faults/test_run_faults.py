"""Faults of one run, in real processes, one after the other; the order of the tests is the order in which they happen.

`python tests/faults` runs all and prints how many the run survived. What becomes of each: docs/reliability.md.
"""

import os
import signal
import time

import pytest

from verl_ext.runtime import checkpoints

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def metrics_of(faulty, name):
    return [data[name] for _, data in sorted(faulty.run.metrics().items()) if name in data]


def test_the_reward_function_raises(faulty):
    faulty.wait_for_steps(1)
    faulty.inject("raise")
    text = faulty.wait_for("the reward function failed on 1 of 128 samples")
    assert "ZeroDivisionError: the reward function is in a mood" in text
    faulty.wait_for_steps()
    assert max(metrics_of(faulty, "trd/reward_failed_frac")) == pytest.approx(1 / 128)


def test_the_reward_function_never_returns(faulty):
    faulty.inject("hang")
    faulty.wait_for("no result within trd.faults.reward_timeout_s=20")
    faulty.wait_for_steps()


def test_a_gradient_that_is_not_finite(faulty):
    faulty.inject("nan")
    faulty.wait_for("its update was skipped")
    faulty.wait_for_steps()
    assert metrics_of(faulty, "trd/skipped_updates")[-1] == 1


def test_a_request_that_never_returns(faulty):
    teacher = faulty.processes("VLLM::EngineCore")[0]
    teacher.send_signal(signal.SIGSTOP)
    try:
        time.sleep(120)  # more than trd.faults.request_timeout_s
    finally:
        teacher.send_signal(signal.SIGCONT)
    faulty.wait_for_steps()
    assert "a request failed and is sent again: TimeoutError" in (faulty.folder / "log.txt").read_text()


def test_the_disk_is_full_while_a_checkpoint_is_written(faulty):
    faulty.inject("full")
    text = faulty.wait_for("could not be written")
    assert "No space left on device" in text
    before, damaged = checkpoints.newest(faulty.folder)
    assert (checkpoints.damage(before), damaged) == (None, {})
    faulty.wait_for_steps()
    after, damaged = checkpoints.newest(faulty.folder)
    assert int(checkpoints.step_of(after)) > int(checkpoints.step_of(before))
    assert damaged == {}


def test_the_teachers_server_dies(faulty):
    faulty.processes("VLLM::EngineCore")[0].kill()
    faulty.wait_for("the teacher's server is up again")
    step = faulty.last_step()
    faulty.wait_for_steps(3)
    assert "goes on from" not in faulty.text()
    assert faulty.run.metrics()[step + 3]["trd/rewrite_accept_rate"] > 0.5


@pytest.mark.parametrize(
    "name", ["ray::TrdAgentLoopWorker", "ray::WorkerDict", "VLLM::EngineCore", "ray::TaskRunnerV1"]
)
def test_a_process_of_the_run_dies(faulty, name):
    """Agent-loop worker, trainer's worker, student's server, and the process in which verl's trainer runs."""
    victim, step = faulty.processes(name)[-1], faulty.last_step()
    restarts = faulty.text().count("the run goes on from")
    victim.kill()
    faulty._until(lambda: faulty.text().count("the run goes on from") > restarts, "it is started again")
    faulty._until(lambda: faulty.last_step() > step, "it is further than before")


def test_sigterm_saves_and_asks_for_another_start(faulty):
    faulty.wait_for_steps(1)
    faulty.run.process.send_signal(signal.SIGTERM)
    assert faulty.run.wait() == 75
    assert checkpoints.step_of(checkpoints.newest(faulty.folder)[0]) == str(faulty.last_step())


def test_the_whole_run_is_killed_and_its_newest_checkpoint_damaged(faulty):
    if faulty.run.process.poll() is not None:  # the test before has ended it
        faulty.start()
    faulty.wait_for_steps(2)
    family = faulty.run.descendants()
    for process in [faulty.run.process, *family]:
        if process.pid in {one.pid for one in family} or process is faulty.run.process:
            os.kill(process.pid, signal.SIGKILL)
    faulty.run.wait()
    newest, _ = checkpoints.newest(faulty.folder)
    step = int(checkpoints.step_of(newest))
    model = max(newest.rglob("model*.pt"), key=lambda path: path.stat().st_size)
    os.truncate(model, model.stat().st_size // 2)
    faulty.start()
    text = faulty.wait_for("is damaged")
    assert f"global_step_{step}" in text
    faulty.wait_for_steps(1)
    first = min(int(line.split()[1].split("/")[0]) for line in faulty.text().splitlines() if line.startswith("step "))
    assert first == step
    faulty.run.process.send_signal(signal.SIGTERM)
    assert faulty.run.wait() == 75
