"""When a dead server is started again; the real restart is in tests/faults."""

from types import SimpleNamespace

import pytest

from recipe.trd.training import teacher_restart
from recipe.trd.training.teacher_restart import TeacherRestart


@pytest.fixture
def trainer():
    replica = SimpleNamespace(servers=["teacher"])
    manager = SimpleNamespace(rollout_replicas=[replica])
    return SimpleNamespace(teacher_model_manager=SimpleNamespace(teacher_model_managers={"one": manager}))


@pytest.fixture
def started(monkeypatch):
    calls = []
    monkeypatch.setattr(teacher_restart, "_start_again", lambda manager, replica, number: calls.append(number))
    return calls


def test_a_teachers_server_is_started_again_as_often_as_allowed(trainer, started, capsys):
    restart = TeacherRestart(allowed=2)
    assert [restart.replace(trainer, "teacher", "killed") for _ in range(3)] == [True, True, False]
    assert started == [1, 2]
    said = capsys.readouterr().out
    assert "the teacher's server died (killed): it is started again, 2 of 2 times" in said
    assert said.count("is up again") == 2


@pytest.mark.parametrize("other", [None, SimpleNamespace(), SimpleNamespace(teacher_model_manager=None)])
def test_without_a_teacher_there_is_nothing_to_start(other, started):
    assert not TeacherRestart(allowed=2).replace(other, "teacher", "killed")
    assert started == []


def test_a_students_server_is_not_replaced(trainer, started):
    assert not TeacherRestart(allowed=2).replace(trainer, "student", "killed")
    assert started == []


def test_a_server_that_does_not_start_again_ends_the_run(trainer, monkeypatch, capsys):
    def fail(manager, replica, number):
        raise OSError("no memory")

    monkeypatch.setattr(teacher_restart, "_start_again", fail)
    assert not TeacherRestart(allowed=2).replace(trainer, "teacher", "killed")
    assert "the teacher's server does not start again: OSError: no memory" in capsys.readouterr().out
