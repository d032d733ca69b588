"""Verdicts before the first step; the measurement itself runs with every end-to-end run."""

import math
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from verl.utils.config import omega_conf_to_dataclass

from recipe.trd.training.first_look import FirstLook, batch_of, compare_answers, judge, refuse_zero_gradient
from verl_ext.engine.probe import Probe

CONFIGS = Path(__file__).parents[4] / "configs"
PROBE = Probe(token_ids=[1, 2], log_probs=[-1.0], base_log_probs=None)


@pytest.mark.parametrize("value", [None, 0.0, 1e-4])
def test_a_student_that_is_itself(value):
    judge(FirstLook(PROBE, value))


@pytest.mark.parametrize("value", [0.1, -0.1, math.nan, math.inf])
def test_a_student_that_differs_from_itself(value):
    with pytest.raises(RuntimeError, match="the divergence of the student from itself is"):
        judge(FirstLook(PROBE, value))


def answer(*values):
    return np.array(values, np.float32)


def test_answers_of_the_teachers_servers():
    assert compare_answers([], [], stop_above=1.0) is None
    assert compare_answers([answer(-1, -2)], [answer()], stop_above=1.0) is None
    assert compare_answers([answer(-1, -2)], [answer(-1, -2)], stop_above=1.0) == 0
    assert compare_answers([answer(-1), answer(-1.5)], [answer(-1), answer(-1)], stop_above=1.0) == pytest.approx(0.5)
    assert compare_answers([answer(-1)], [answer(-9)], stop_above=None) == 8
    for other in (answer(-9), answer(math.nan)):
        with pytest.raises(RuntimeError, match=r"answer one question twice .* trd\.server_gap_stop=1\.0"):
            compare_answers([answer(-1)], [other], stop_above=1.0)


@pytest.mark.parametrize(
    ("metrics", "refused"),
    [
        ({"actor/grad_norm": 0.0, "trd/masked_frac": 0.5}, True),
        ({"actor/grad_norm": 0.0, "trd/masked_frac": 1.0}, False),  # nothing counted, which is said elsewhere
        ({"actor/grad_norm": 1e-9, "trd/masked_frac": 0.0}, False),
        ({"actor/grad_norm": math.nan}, False),  # is skipped and counted
        ({}, False),
    ],
)
def test_a_first_step_that_teaches_nothing(metrics, refused):
    if not refused:
        refuse_zero_gradient(metrics)
        return
    with pytest.raises(RuntimeError, match="the gradient of the first step is exactly 0"):
        refuse_zero_gradient(metrics)


@pytest.mark.parametrize("num", [2, 3, 64])
@pytest.mark.parametrize("method", ["trd_opd", "trd_grpo"])
def test_both_sides_read_one_sample(num, method):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("trd_trainer", overrides=[f"method={method}", "model=tiny", "data=tiny_world", "cluster=cpu"])
    data = batch_of(list(range(num)), omega_conf_to_dataclass(config.trd))
    assert data["teacher_input_ids"].values().tolist() == data["input_ids"].values().tolist() == list(range(num))
    response = data["responses"].values().tolist()
    assert response == list(range(max(1, num // 2), num))
    assert data["distill_mask"].values().tolist() == [1] * len(response)
