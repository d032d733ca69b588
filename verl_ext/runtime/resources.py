"""Does the Ray cluster have the resources of a run? verl itself waits forever for CPUs that are missing."""

import time

import ray
from omegaconf import DictConfig, OmegaConf

CPUS_PER_BUNDLE = 3
"""`max_colocate_count` of verl's resource pools."""


def required(config: DictConfig) -> dict[str, float]:
    """Ray resources that one run reserves, in verl's placement groups and for its other actors.

    Args:
        config: the resolved configuration of verl's trainer.

    Returns:
        "GPU" and "CPU", logical units.
    """
    gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
    # Some runs put the teacher's servers on the trainer's GPUs.
    if OmegaConf.select(config, "distillation.enabled") and not OmegaConf.select(config, "trd.shared_gpus"):
        gpus += config.distillation.nnodes * config.distillation.n_gpus_per_node
    reward_model = config.reward.reward_model
    if reward_model.enable and reward_model.enable_resource_pool:
        gpus += reward_model.nnodes * reward_model.n_gpus_per_node
    # The task runner, TransferQueue's controller and its storage units; agent-loop and reward workers.
    storage = config.transfer_queue.backend.SimpleStorage.num_data_storage_units
    single = 2 + storage + config.actor_rollout_ref.rollout.agent.num_workers + config.reward.num_workers
    return {"GPU": gpus, "CPU": CPUS_PER_BUNDLE * gpus + single}


def wait_until_available(needed: dict[str, float], *, timeout_s: float = 60.0) -> None:
    """Wait until the Ray cluster has the resources; nodes may still be joining.

    Args:
        needed: resource name to units.
        timeout_s: longest wait.

    Raises:
        RuntimeError: something is still missing; the message names it and what to change.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        have = ray.cluster_resources()
        missing = {name: units for name, units in needed.items() if have.get(name, 0) < units}
        if not missing:
            return
        if time.monotonic() > deadline:
            wanted = ", ".join(f"{units:g} {name} (has {have.get(name, 0):g})" for name, units in missing.items())
            raise RuntimeError(
                f"the Ray cluster lacks resources for this run: it needs {wanted}. Add nodes, or lower "
                "trainer.n_gpus_per_node, distillation.n_gpus_per_node or the numbers of workers; on a CPU machine "
                "raise ray_kwargs.ray_init.num_cpus and num_gpus, which are logical there"
            )
        time.sleep(1.0)
