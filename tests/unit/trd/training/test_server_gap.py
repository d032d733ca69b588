"""Servers that have other weights than they should: what is measured, warned of, and stopped."""

import numpy as np
import pytest

from recipe.trd.training.server_gap import ServerWatch
from verl_ext.engine.probe import Probe

SAID = np.array([-1.0, -2.0, -0.5, -3.0], np.float32)


def watch(warn=0.2, stop=2.0):
    return ServerWatch(warn_above=warn, stop_above=stop)


def probe(base=None):
    return Probe(token_ids=[5, 6, 7, 8, 9], log_probs=SAID.tolist(), base_log_probs=base)


def test_equal_weights_differ_by_nothing(capsys):
    metrics = watch().student(probe(), [SAID, SAID], [])
    assert metrics == {"trd/server_trainer_gap/mean": 0.0, "trd/server_trainer_gap/max": 0.0}
    assert capsys.readouterr().out == ""


def test_the_worst_server_counts_and_a_gap_is_warned_of(capsys):
    other = SAID + np.array([0.0, 1.0, 0.0, 0.2], np.float32)
    metrics = watch().student(probe(), [SAID, other], [])
    assert metrics["trd/server_trainer_gap/mean"] == pytest.approx(0.3)
    assert metrics["trd/server_trainer_gap/max"] == pytest.approx(1.0)
    assert "WARNING the student's server and the trainer differ by 0.3 nats" in capsys.readouterr().out
    assert watch(warn=None).student(probe(), [other], [])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("answer", [SAID - 2.5, SAID * np.nan], ids=["far away", "not a number"])
def test_other_weights_stop_the_run(answer):
    with pytest.raises(RuntimeError, match=r"more than trd\.server_gap_stop=2\.0: a server has other weights"):
        watch().student(probe(), [SAID, answer], [])
    assert watch(warn=None, stop=None).student(probe(), [answer], [])


def test_a_server_that_refused_says_nothing():
    assert watch().student(probe(), [np.empty(0)], []) == {}
    assert watch().teacher([np.empty(0)]) == {}


def test_a_teacher_is_compared_with_its_own_first_answer():
    watched = watch()
    assert watched.teacher([SAID, SAID + 1])["trd/teacher_server_gap/max"] == 0
    assert watched.teacher([SAID, SAID + 1])["trd/teacher_server_gap/max"] == 0
    with pytest.raises(RuntimeError, match="the teacher's server now and at the first step differ by 3 nats"):
        watched.teacher([SAID, SAID - 2])


def test_an_adapter_that_is_dropped_stops_the_run():
    base = (SAID - 0.1).tolist()  # within the bound of the gap
    in_force = watch().student(probe(base), [SAID], [np.asarray(base)])
    assert in_force["trd/server_trainer_gap/mean"] == 0
    with pytest.raises(RuntimeError, match="the student's adapter is not in force on its server"):
        watch().student(probe(base), [np.asarray(base)], [np.asarray(base)])


def test_an_adapter_that_changes_nothing_yet_cannot_be_told():
    base = (SAID - 0.001).tolist()
    assert watch().student(probe(base), [np.asarray(base)], [np.asarray(base)])
