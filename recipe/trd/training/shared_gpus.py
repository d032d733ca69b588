"""One set of GPUs for trainer, student's servers and teacher's servers (`trd.shared_gpus`)."""

import asyncio
from typing import Any

from verl.trainer.ppo.utils import Role


class SharedGpus:
    """Mixin for verl's trainer; comes before it in the list of base classes.

    Without `trd.shared_gpus` it does nothing: the teacher has a resource pool of its own, as verl made it.
    """

    config: Any
    resource_pool_manager: Any
    teacher_model_manager: Any

    def _init_resource_pool_mgr(self) -> None:
        """verl's, with the teacher in the trainer's pool."""
        super()._init_resource_pool_mgr()  # type: ignore[misc]
        manager = self.resource_pool_manager
        if self.config.trd.shared_gpus and Role.TeacherModel in manager.mapping:
            own = manager.mapping[Role.TeacherModel]
            manager.mapping[Role.TeacherModel] = manager.mapping[_trainer_role(manager.mapping)]
            del manager.resource_pool_spec[own]

    def on_sample_end(self) -> None:
        """verl sends the student's servers to sleep for the update; the teacher's go with them."""
        super().on_sample_end()  # type: ignore[misc]
        asyncio.run(_each(self._sleepers(), "sleep"))

    def on_step_end(self) -> None:
        """They wake when the student's have their new weights, and the memory of the update is free."""
        super().on_step_end()  # type: ignore[misc]
        asyncio.run(_each(self._sleepers(), "wake_up"))

    def _sleepers(self) -> list[Any]:
        """The teacher's replicas that share GPUs and can sleep."""
        if not self.config.trd.shared_gpus or self.teacher_model_manager is None:
            return []
        return [
            replica
            for manager in self.teacher_model_manager.teacher_model_managers.values()
            for replica in manager.rollout_replicas
            if replica.config.enable_sleep_mode and replica.config.free_cache_engine
        ]


async def _each(replicas: list[Any], method: str) -> None:
    await asyncio.gather(*(getattr(replica, method)() for replica in replicas))


def _trainer_role(mapping: dict[Role, str]) -> Role:
    return next(role for role in (Role.ActorRollout, Role.ActorRolloutRef, Role.Actor) if role in mapping)
