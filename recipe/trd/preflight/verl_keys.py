"""Keys of verl that would do nothing, or the wrong thing, beside this package's objective."""

from omegaconf import DictConfig, OmegaConf

from recipe.trd.config.axes import Weights
from recipe.trd.config.schema import TrdConfig

ACTOR = "actor_rollout_ref.actor"
AGENT_LOOP = "recipe.trd.training.agent_loop.TrdAgentLoopManager"
LOSS = "distillation.distillation_loss"


def check_fixed(config: DictConfig, trd: TrdConfig) -> None:
    """Keys that have one possible value.

    Raises:
        ValueError: one has another.
    """
    wanted = {
        "trainer.use_v1": True,
        "trainer.v1.trainer_mode": "trd",
        "algorithm.use_kl_in_reward": False,
        "distillation.enabled": trd.has_server,
        "actor_rollout_ref.model.use_fused_kernels": False,
        "actor_rollout_ref.rollout.agent.agent_loop_manager_class": AGENT_LOOP,
        "actor_rollout_ref.rollout.calculate_log_probs": False,
        f"{ACTOR}.use_kl_loss": False,
        f"{ACTOR}.entropy_coeff": 0,
        f"{ACTOR}.fsdp_config.pad_to_length": False,
        f"{LOSS}.loss_mode": "trd",
        f"{LOSS}.topk": trd.objective.top_k,
        f"{LOSS}.use_task_rewards": False,
        f"{LOSS}.use_policy_gradient": False,
    }
    for key, value in wanted.items():
        if (given := OmegaConf.select(config, key)) != value:
            raise ValueError(f"{key}={given} does not go with method {trd.method}, which needs {value}; leave it out")


def check_objective(config: DictConfig, trd: TrdConfig) -> None:
    """Keys of verl against those of `trd`.

    Raises:
        ValueError: they contradict each other.
    """
    check_fixed(config, trd)
    actor, weights = config.actor_rollout_ref.actor, trd.teacher.weights if trd.teacher else None
    if weights is Weights.EMA and actor.strategy != "fsdp2":
        raise ValueError(f"trd.teacher.weights=ema needs {ACTOR}.strategy=fsdp2, whose shards can be exchanged")
    if weights is Weights.FROZEN and config.actor_rollout_ref.model.lora_adapter_path is not None:
        raise ValueError(
            "trd.teacher.weights=frozen with actor_rollout_ref.model.lora_adapter_path: the student at step 0 has that "
            "adapter, and the frozen teacher would be the base without it; export the adapter into a model of its own "
            "first (docs/export.md), or set trd.teacher.weights=ema or live"
        )
    if trd.objective.task_reward_coef > 0 and config.algorithm.adv_estimator == "distillation":
        raise ValueError(
            f"trd.objective.task_reward_coef={trd.objective.task_reward_coef} needs advantages: set "
            "algorithm.adv_estimator=grpo and actor_rollout_ref.rollout.n to the size of a group, or method=trd_grpo"
        )
    if actor.loss_agg_mode == "seq-mean-token-sum-norm" and actor.loss_scale_factor is None:
        raise ValueError(
            f"{ACTOR}.loss_agg_mode={actor.loss_agg_mode} needs {ACTOR}.loss_scale_factor: without it the loss would "
            "depend on the longest response of a micro-batch"
        )
    if actor.strategy not in ("fsdp", "fsdp2"):
        raise ValueError(f"{ACTOR}.strategy={actor.strategy}: method {trd.method} runs on fsdp and fsdp2")


def check_batches(config: DictConfig) -> None:
    """verl cuts batches into equal parts, and finds out in the first update when that does not work.

    Raises:
        ValueError: the parts are not equal.
    """
    actor, num_gpus = config.actor_rollout_ref.actor, config.trainer.n_gpus_per_node * config.trainer.nnodes
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
