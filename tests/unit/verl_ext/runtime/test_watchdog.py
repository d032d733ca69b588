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
    assert ended == ["its engine is gone"]


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
    trd = SimpleNamespace(upstream=True, health_interval_s=1)
    with pytest.raises(RuntimeError, match="no trajectories"):
        runner.run(SimpleNamespace(trd=trd))
    assert calls == ["look", "stop"]
