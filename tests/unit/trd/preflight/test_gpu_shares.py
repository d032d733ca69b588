"""Pools and shares of memory on shared GPUs."""

import pytest
from omegaconf import OmegaConf

from recipe.trd.preflight import gpu_shares


def config_of(*, shared=True, enabled=True, teacher_gpus=1, shares=(0.3, 0.4), device="cuda"):
    inference = {"gpu_memory_utilization": shares[1]}
    return OmegaConf.create(
        {
            "trd": {"shared_gpus": shared},
            "trainer": {"nnodes": 1, "n_gpus_per_node": 1, "device": device},
            "distillation": {
                "enabled": enabled,
                "nnodes": 1,
                "n_gpus_per_node": teacher_gpus,
                "teacher_models": {"teacher_model": {"inference": inference}},
            },
            "actor_rollout_ref": {"rollout": {"gpu_memory_utilization": shares[0]}},
        }
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shared": False, "teacher_gpus": 4},
        {"enabled": False, "teacher_gpus": 4},
        {"shares": (1, 1), "device": "cpu"},
    ],
)
def test_what_can_work_is_not_refused(changes):
    gpu_shares.check(config_of(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_gpus": 4}, "distillation.n_gpus_per_node=4 with trd.shared_gpus=true and trainer.n_gpus_per_node=1"),
        ({"shares": (0.5, 0.6)}, "gpu_memory_utilization=0.5 and .*gpu_memory_utilization=0.6 .*at most 0.9 of a GPU"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        gpu_shares.check(config_of(**changes))
