"""What a run leaves behind on the machine, with real processes and real mappings."""

import mmap
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from verl_ext.runtime import leftovers


@pytest.fixture
def start():
    """Start a sleeping process; whatever a test leaves alive ends with it."""
    started = []

    def run(code="pass", **environment):
        program = f"import time; {code}; print(flush=True); time.sleep(60)"
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", program], env={**os.environ, **environment}, stdout=subprocess.PIPE
        )
        started.append(process)
        process.stdout.readline()  # it is past its start-up
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def guard(monkeypatch):
    """`process_guard` that leaves /dev/shm of this machine alone."""
    monkeypatch.setattr(leftovers, "remove_stale_shared_memory", lambda **_: [])
    return leftovers.process_guard


def is_running(process):
    return process.poll() is None and psutil.pid_exists(process.pid)


def test_processes_of_the_run_are_ended(guard, start):
    with guard():
        process = start()
        assert is_running(process)
    assert not is_running(process)


def test_they_are_ended_after_an_exception_too(guard, start):
    started = []

    def crash():
        with guard():
            started.append(start())
            raise KeyError

    with pytest.raises(KeyError):
        crash()
    assert not is_running(started[0])


def test_process_whose_parent_is_gone_is_ended(guard, tmp_path):
    # An engine that outlives the worker that started it.
    pid_file = tmp_path / "pid"
    child = "import time; time.sleep(60)"
    parent = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-S', '-c', {child!r}]); print(p.pid)"
    with guard():
        with pid_file.open("w") as out:
            subprocess.run([sys.executable, "-S", "-c", parent], stdout=out, check=True)
        pid = int(pid_file.read_text())
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_processes_of_another_run_and_of_none_live_on(guard, start):
    before = start()
    with guard():
        other = start(**{leftovers.RUN_ID: "another run"})
    assert is_running(before)
    assert is_running(other)


def test_process_that_ignores_the_polite_signal_is_killed(start):
    process = start("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)", **{leftovers.RUN_ID: "this test"})
    process.send_signal(signal.SIGTERM)
    assert is_running(process)
    leftovers._end_marked("this test", patience_s=0.0)
    assert not is_running(process)


def test_mark_is_gone_afterwards(guard):
    with guard():
        assert os.environ[leftovers.RUN_ID]
    assert leftovers.RUN_ID not in os.environ


@pytest.fixture
def make_segment(tmp_path):
    """A file as large as a page that was last written so many seconds ago."""

    def make(name, age_s=3600.0):
        path = tmp_path / name
        path.write_bytes(bytes(mmap.PAGESIZE))
        os.utime(path, times=(time.time() - age_s,) * 2)
        return path

    return make


@pytest.mark.parametrize("name", ["verl_weights_0a1b", "psm_4f3e"])
def test_segment_that_nobody_has_mapped_is_removed(make_segment, tmp_path, name):
    path = make_segment(name)
    assert leftovers.remove_stale_shared_memory(tmp_path) == [path]
    assert not path.exists()


def test_segment_that_a_process_has_mapped_stays(make_segment, tmp_path):
    used, stale = make_segment("verl_weights_1"), make_segment("verl_weights_2")
    with used.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        assert leftovers.remove_stale_shared_memory(tmp_path) == [stale]
    assert used.exists()


def test_files_of_others_stay(make_segment, tmp_path, monkeypatch):
    unknown = make_segment("sem.mine")
    monkeypatch.setattr(os, "getuid", lambda: unknown.stat().st_uid + 1)
    other_users = make_segment("verl_weights_1")
    assert leftovers.remove_stale_shared_memory(tmp_path) == []
    assert unknown.exists()
    assert other_users.exists()


@pytest.mark.parametrize(
    ("age_s", "limits", "removed"),
    [
        (1, {}, False),  # perhaps about to be mapped
        (3600, {}, True),
        (1, {"min_age_s": 0.0}, True),
        (3600, {"since": -60}, False),  # from before the run
        (30, {"min_age_s": 0.0, "since": -60}, True),
    ],
)
def test_age_decides(make_segment, tmp_path, age_s, limits, removed):
    path = make_segment("verl_weights_1", age_s)
    if "since" in limits:
        limits = {**limits, "since": time.time() + limits["since"]}
    leftovers.remove_stale_shared_memory(tmp_path, **limits)
    assert path.exists() is not removed


def test_machine_without_shared_memory_has_none(tmp_path):
    assert leftovers.remove_stale_shared_memory(tmp_path / "nowhere") == []
