"""verl's task runner with this recipe registered in its process."""

from typing import Any

import ray
from omegaconf import DictConfig
from verl.trainer.main_ppo import TaskRunnerV1

from recipe.trd.training import loss, trainer  # noqa: F401  both register with verl
from recipe.trd.training.teacher_restart import TeacherRestart
from verl_ext.runtime import resources, watchdog
from verl_ext.server import topk_server


class TrdTaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """Runs verl's own `run`; which trainer, agent loop and loss it picks is configuration."""

    def run(self, config: DictConfig) -> None:
        """Train to the end. Ends with an exception when resources are missing or a server dies."""
        resources.wait_until_available(resources.required(config))
        if not config.trd.upstream:
            topk_server.register()
        upstream = config.trd.upstream
        restart = TeacherRestart(allowed=0 if upstream else config.trd.faults.teacher_restarts)
        self._watchdog = watchdog.Watchdog(
            interval_s=config.trd.health_interval_s,
            servers=self._servers,
            workers=self._workers,
            replace=lambda server, reason: restart.replace(self.trainer, server, reason),
        )
        try:
            super().run(config)
        except Exception:
            # A server that died may end a step before the watchdog's next round; then it is the cause to name.
            self._watchdog.look()
            raise
        finally:
            # Servers that go down with a failed run are not its cause.
            self._watchdog.stop()

    def _workers(self) -> list[Any]:
        """Handles of the workers that samples come from; the trainer finds out by itself when one of its own dies."""
        loops = getattr(getattr(self.trainer, "agent_loop_manager", None), "agent_loop_workers", None)
        rewards = getattr(getattr(self.trainer, "reward_loop_manager", None), "reward_loop_workers", None)
        return [*(loops or []), *(rewards or [])]

    def _servers(self) -> list[Any]:
        """Handles of the vLLM servers that are up."""
        return [server for replica in trainer.replicas(self.trainer) for server in replica.servers]


def remote_class() -> Any:
    """The Ray actor class for `verl.trainer.main_ppo.run_ppo`."""
    return ray.remote(TrdTaskRunner)
