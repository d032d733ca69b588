"""Batches, steps and groups: they can be cut as verl cuts them, reach the last step, and can teach something."""

from omegaconf import DictConfig

from recipe.trd.config.schema import TrdConfig

ACTOR = "actor_rollout_ref.actor"
GROUP_ESTIMATORS = ("grpo", "grpo_vectorized", "grpo_passk", "rloo", "rloo_vectorized", "opo", "gpg")
"""Advantages that compare the rollouts of one prompt with each other."""


def check_cuts(config: DictConfig) -> None:
    """verl cuts batches into equal parts, and finds out in the first update when that does not work.

    Raises:
        ValueError: the parts are not equal.
    """
    actor, batch = config.actor_rollout_ref.actor, config.data.train_batch_size
    if actor.ppo_mini_batch_size > batch or batch % actor.ppo_mini_batch_size:
        raise ValueError(
            f"data.train_batch_size={batch} cannot be cut into mini-batches of {ACTOR}.ppo_mini_batch_size="
            f"{actor.ppo_mini_batch_size}: set it to the batch size, or to a divisor of it"
        )
    num_gpus = config.trainer.n_gpus_per_node * config.trainer.nnodes
    if actor.use_dynamic_bsz:
        return
    num_samples = actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
    part = num_gpus * (actor.ppo_micro_batch_size_per_gpu or 1)
    if num_samples % part:
        raise ValueError(
            f"ppo_mini_batch_size * rollout.n = {num_samples} samples cannot be cut into micro-batches "
            f"of {actor.ppo_micro_batch_size_per_gpu} on {num_gpus} devices: change "
            f"{ACTOR}.ppo_micro_batch_size_per_gpu, or set {ACTOR}.use_dynamic_bsz=True"
        )


def check_groups(config: DictConfig, trd: TrdConfig) -> None:
    """A task reward that is compared within a group needs a group; two samples of a rollout need GRPO's advantage.

    Raises:
        ValueError: the message names both keys.
    """
    if not (trd.objective.task_reward_coef > 0 or (trd.upstream and trd.teacher is None)):
        return
    estimator, n = config.algorithm.adv_estimator, config.actor_rollout_ref.rollout.n
    if estimator in GROUP_ESTIMATORS and n < 2:
        raise ValueError(
            f"actor_rollout_ref.rollout.n={n} with algorithm.adv_estimator={estimator}: the advantage of a group of "
            "one is always 0, and nothing would be learned; set rollout.n=8, for example"
        )
    if trd.trains_both and estimator != "grpo":
        raise ValueError(
            f"algorithm.adv_estimator={estimator} with trd.trajectory=y_r and trd.objective.task_reward_coef="
            f"{trd.objective.task_reward_coef}: every rollout gives two samples, which only grpo counts once; set "
            "algorithm.adv_estimator=grpo"
        )


def set_epochs(config: DictConfig) -> None:
    """`total_training_steps` is what ends a run: the epochs are raised to reach it, since each has a step at least."""
    steps = config.trainer.total_training_steps
    if steps is not None:
        config.trainer.total_epochs = max(config.trainer.total_epochs, steps)
