"""One set of GPUs for everything: the pools are one, and the shares of the servers leave room."""

from omegaconf import DictConfig, OmegaConf

MOST = 0.9
"""Share of a GPU that the servers may take together; the trainer's weights and CUDA contexts need the rest."""


def check(config: DictConfig) -> None:
    """The teacher's pool is the trainer's, and two servers fit beside each other.

    Raises:
        ValueError: they do not.
    """
    if not config.trd.shared_gpus or not config.distillation.enabled:
        return
    for key in ("nnodes", "n_gpus_per_node"):
        own, trainers = config.distillation[key], config.trainer[key]
        if own != trainers:
            raise ValueError(
                f"distillation.{key}={own} with trd.shared_gpus=true and trainer.{key}={trainers}: the teacher's "
                f"servers stand on the trainer's GPUs; set distillation.{key}={trainers}, or trd.shared_gpus=false"
            )
    keys = ("actor_rollout_ref.rollout", "distillation.teacher_models.teacher_model.inference")
    shares = [OmegaConf.select(config, f"{key}.gpu_memory_utilization") for key in keys]
    if config.trainer.device == "cuda" and sum(shares) > MOST:
        raise ValueError(
            f"{keys[0]}.gpu_memory_utilization={shares[0]:g} and {keys[1]}.gpu_memory_utilization={shares[1]:g} with "
            f"trd.shared_gpus=true: together at most {MOST:g} of a GPU, beside the trainer; lower one of them "
            "(python -m recipe.trd.plan tells what the models need)"
        )
