"""Another server in the place of a teacher's that died; the run goes on, its requests wait (`PatientClient`)."""

import asyncio
from typing import Any

import ray

from verl_ext.runtime.console import show
from verl_ext.runtime.errors import one_line


class TeacherRestart:
    """Counts how often a teacher's server was started again."""

    def __init__(self, *, allowed: int) -> None:
        """Args: allowed: restarts of a run (`trd.faults.teacher_restarts`)."""
        self._allowed, self._done = allowed, 0

    def replace(self, trainer: Any, server: Any, reason: str) -> bool:
        """Start the teacher's replica that a dead server belonged to again, in the same place.

        Args:
            trainer: verl's.
            server: handle of the dead actor, or of one whose engine is dead.
            reason: what it died of.

        Returns:
            False where it is no teacher's, has been started again too often, or does not start.
        """
        managers = getattr(getattr(trainer, "teacher_model_manager", None), "teacher_model_managers", {}).values()
        found = [(manager, one) for manager in managers for one in manager.rollout_replicas if server in one.servers]
        if not found or self._done >= self._allowed:
            return False
        self._done += 1
        ((manager, replica),) = found
        count = f"{self._done} of {self._allowed} times"
        show(f"WARNING the teacher's server died ({reason}): it is started again, {count}")
        try:
            _start_again(manager, replica, number=self._done)
        except Exception as error:
            # Whatever kept it from starting: the run then ends with this line and the first cause.
            show(f"ERROR the teacher's server does not start again: {one_line(error)}")
            return False
        show("the teacher's server is up again")
        return True


def _start_again(manager: Any, replica: Any, *, number: int) -> None:
    balancer = manager.load_balancer_handle
    ray.get(balancer.remove_servers.remote([replica.server_address]))
    for actor in replica.servers:
        _end_engine(actor)
    for actor in [*replica.servers, *replica.workers]:
        ray.kill(actor)
    replica.servers, replica.workers = [], []
    # Ray remembers names of actors for a while.
    replica.name_suffix = f"{replica.name_suffix.partition('_again')[0]}_again{number}"
    asyncio.run(replica.init_colocated(replica.resource_pool))
    ray.get(balancer.add_servers.remote({replica.server_address: replica.server_handle}))
    manager.server_handles = [one.server_handle for one in manager.rollout_replicas]
    manager.server_addresses = [one.server_address for one in manager.rollout_replicas]


def _end_engine(server: Any) -> None:
    """An engine whose core died may leave workers that hold its memory; an actor that is gone cannot be asked."""
    try:
        ray.get(server.__ray_call__.remote(_end_children), timeout=30)
    except ray.exceptions.RayError:
        return


def _end_children(server: Any) -> None:
    """Runs inside the server's actor."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        child.kill()
    psutil.wait_procs(children, timeout=10)
