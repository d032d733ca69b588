"""What ends a run whose servers died; the real death is in tests/e2e/test_opd_grpo.py."""

from types import SimpleNamespace

import pytest

from recipe.trd.training import task_runner
from verl_ext.runtime.watchdog import Watchdog


def test_a_look_ends_the_run_where_a_server_is_dead_until_it_is_stopped(monkeypatch):
    watchdog = Watchdog(interval_s=3600, servers=lambda: ["alive", "dead"])
    ended = []
    monkeypatch.setattr(watchdog, "_ask", {"alive": None, "dead": "its engine is gone"}.get)
    monkeypatch.setattr(watchdog, "_end_run", ended.append)
    watchdog.look()
    watchdog.stop()
    watchdog.look()
    assert ended == ["a vLLM server died: its engine is gone"]


@pytest.mark.parametrize(("can", "ends"), [(True, False), (False, True)])
def test_a_dead_server_is_replaced_where_that_can_be_done(monkeypatch, can, ends):
    asked, ended = [], []

    def replace(server, reason):
        asked.append((server, reason))
        return can

    watchdog = Watchdog(interval_s=3600, servers=lambda: ["dead"], replace=replace)
    monkeypatch.setattr(watchdog, "_ask", lambda server: "gone")
    monkeypatch.setattr(watchdog, "_end_run", ended.append)
    watchdog.look(may_replace=True)
    assert asked == [("dead", "gone")]
    assert bool(ended) == ends
    ended.clear()
    watchdog.look()  # the run is failing already: nothing is started any more
    assert len(asked) == 1
    assert ended


def test_a_dead_worker_ends_the_run_and_a_silent_one_does_not(monkeypatch):
    ended = []
    watchdog = Watchdog(interval_s=3600, servers=list, workers=lambda: ["busy", "dead"])
    monkeypatch.setattr(watchdog, "_is_gone", {"busy": False, "dead": True}.get)
    monkeypatch.setattr(watchdog, "_end_run", ended.append)
    watchdog.look()
    assert ended == ["a worker died ('dead')"]


def test_a_step_that_fails_has_the_servers_looked_at_before_they_go_down(monkeypatch):
    calls = []

    class Spy:
        def __init__(self, **_):
            pass

        def look(self):
            calls.append("look")

        def stop(self):
            calls.append("stop")

    def fail(self, config):
        raise RuntimeError("no trajectories")

    monkeypatch.setattr(task_runner.watchdog, "Watchdog", Spy)
    monkeypatch.setattr(task_runner.resources, "required", lambda config: None)
    monkeypatch.setattr(task_runner.resources, "wait_until_available", lambda required: None)
    monkeypatch.setattr(task_runner.TrdTaskRunner.__bases__[0], "run", fail)
    runner = object.__new__(task_runner.TrdTaskRunner)
    trd = SimpleNamespace(upstream=True, health_interval_s=1, faults=SimpleNamespace(teacher_restarts=2))
    with pytest.raises(RuntimeError, match="no trajectories"):
        runner.run(SimpleNamespace(trd=trd))
    assert calls == ["look", "stop"]
