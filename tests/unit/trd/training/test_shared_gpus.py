"""The teacher in the trainer's resource pool, asleep during an update."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.utils import Role

from recipe.trd.training.shared_gpus import SharedGpus


class Replica:
    def __init__(self, log, *, sleeps):
        self.log = log
        self.config = SimpleNamespace(enable_sleep_mode=True, free_cache_engine=sleeps)

    async def sleep(self):
        self.log.append("teacher sleeps")

    async def wake_up(self):
        self.log.append("teacher wakes")


class Verls:
    def _init_resource_pool_mgr(self):
        mapping = {Role.ActorRollout: "global_pool", Role.TeacherModel: "teacher_pool"}
        self.resource_pool_manager = SimpleNamespace(
            mapping=mapping, resource_pool_spec={"global_pool": [2], "teacher_pool": [2]}
        )

    def on_sample_end(self):
        self.log.append("student sleeps")

    def on_step_end(self):
        self.log.append("student has weights")


class Trainer(SharedGpus, Verls):
    def __init__(self, *, shared, sleeps=True):
        self.log = []
        self.config = OmegaConf.create({"trd": {"shared_gpus": shared}})
        manager = SimpleNamespace(rollout_replicas=[Replica(self.log, sleeps=sleeps)])
        self.teacher_model_manager = SimpleNamespace(teacher_model_managers={"teacher_model": manager})


@pytest.mark.parametrize("shared", [True, False])
def test_one_pool_or_two(shared):
    trainer = Trainer(shared=shared)
    trainer._init_resource_pool_mgr()
    manager = trainer.resource_pool_manager
    assert manager.mapping[Role.TeacherModel] == ("global_pool" if shared else "teacher_pool")
    assert set(manager.resource_pool_spec) == set(manager.mapping.values())


@pytest.mark.parametrize(
    ("shared", "sleeps", "expected"),
    [
        (True, True, ["student sleeps", "teacher sleeps", "student has weights", "teacher wakes"]),
        (True, False, ["student sleeps", "student has weights"]),
        (False, True, ["student sleeps", "student has weights"]),
    ],
)
def test_the_teacher_sleeps_while_the_student_is_updated(shared, sleeps, expected):
    trainer = Trainer(shared=shared, sleeps=sleeps)
    trainer.on_sample_end()
    trainer.on_step_end()
    assert trainer.log == expected


def test_a_method_without_a_teacher():
    trainer = Trainer(shared=True)
    trainer.teacher_model_manager = None
    trainer.on_sample_end()
    trainer.on_step_end()
    assert trainer.log == ["student sleeps", "student has weights"]
