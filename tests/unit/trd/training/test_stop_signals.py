"""SIGUSR1 and SIGTERM in a process of its own."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from recipe.trd.training import preemption, stop_signals

PROGRAM = """
    import sys, time
    from pathlib import Path
    from omegaconf import OmegaConf
    from recipe.trd.training import stop_signals

    config = OmegaConf.create({"ray_kwargs": {"ray_init": {"runtime_env": {"env_vars": {}}}}})
    stop_signals.install(config, Path(sys.argv[1]))
    try:
        print(dict(config.ray_kwargs.ray_init.runtime_env.env_vars), flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        raise SystemExit(130)
"""


@pytest.fixture
def program(tmp_path):
    started = []

    def start(**environment):
        env = {name: value for name, value in os.environ.items() if name != preemption.STOP_FILE}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)],
                env={**env, **environment},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1], started[-1].stdout.readline()

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("first", [signal.SIGUSR1, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_the_second_ends_at_once(program, tmp_path, first):
    (tmp_path / ".stop").touch()  # of an earlier run
    process, told = program()
    stop_file = tmp_path / ".stop"
    assert not stop_file.exists()
    assert told.strip() == str({preemption.STOP_FILE: str(stop_file)})
    process.send_signal(first)
    deadline = time.monotonic() + 20
    while not stop_file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 130


def test_where_somebody_else_makes_requests_sigterm_ends_at_once(program, tmp_path):
    process, told = program(**{preemption.STOP_FILE: str(tmp_path / "theirs")})
    assert told.strip() == "{}"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 130
    assert not (tmp_path / "theirs").exists()


def test_a_run_that_stopped_says_so(tmp_path):
    assert not stop_signals.stopped(tmp_path)
    preemption.stopped_file(tmp_path / ".stop").write_text("4\n")
    assert stop_signals.stopped(tmp_path)


RAY_PROGRAM = """
    import os, sys, time
    from pathlib import Path
    import ray
    from omegaconf import OmegaConf
    from recipe.trd.training import stop_signals

    class Runner:
        def run(self):
            time.sleep(60)

    config = OmegaConf.create({"ray_kwargs": {"ray_init": {"runtime_env": {"env_vars": {}}}}})
    stop_signals.install(config, Path(sys.argv[1]))
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    runner = stop_signals.TakenBack(ray.remote(Runner)).options(num_cpus=0).remote()
    try:
        print("up", flush=True)
        ray.get(runner.run.remote())
    except KeyboardInterrupt:
        raise SystemExit(130)
"""


def test_ray_does_not_keep_the_signals(tmp_path):
    env = {name: value for name, value in os.environ.items() if name != preemption.STOP_FILE}
    command = [sys.executable, "-c", textwrap.dedent(RAY_PROGRAM), str(tmp_path)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    try:
        while process.stdout.readline().strip() != "up":
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 20
        while not (tmp_path / ".stop").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait()
