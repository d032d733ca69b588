"""Keys of verl that would do nothing, or the wrong thing, beside this package's objective."""

from omegaconf import DictConfig, OmegaConf

from recipe.trd.config.axes import Weights
from recipe.trd.config.schema import TrdConfig
from verl_ext.runtime.console import show

ACTOR = "actor_rollout_ref.actor"
AGENT_LOOP = "recipe.trd.training.agent_loop.TrdAgentLoopManager"
SERVER = "distillation.teacher_models.teacher_model.inference"
LOSS = "distillation.distillation_loss"


SINGLE_TURN = "single_turn_agent"
"""verl's name of the agent loop without tools."""


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
    fsdp = actor.fsdp_config
    dtypes = {"model_dtype": fsdp.model_dtype, "mixed_precision.param_dtype": _param_dtype(fsdp), "dtype": fsdp.dtype}
    for key, dtype in dtypes.items():
        if dtype in ("fp16", "float16", "half"):
            raise ValueError(
                f"{ACTOR}.fsdp_config.{key}={dtype}: the gradient is formed in the forward pass, before a loss scale "
                "could keep it out of fp16's underflow; set bf16 or fp32"
            )
    if actor.strategy not in ("fsdp", "fsdp2"):
        raise ValueError(f"{ACTOR}.strategy={actor.strategy}: method {trd.method} runs on fsdp and fsdp2")


def _param_dtype(fsdp: DictConfig) -> str | None:
    dtype: str | None = OmegaConf.select(fsdp, "mixed_precision.param_dtype")
    return dtype


def check_sampling(config: DictConfig, trd: TrdConfig) -> None:
    """Warn where log-probs at temperature 1 meet tokens that were sampled otherwise."""
    rollout = config.actor_rollout_ref.rollout
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}
    changed = [f"{key}={rollout[key]}" for key, value in sampling.items() if rollout[key] != value]
    follows_gradient = trd.objective.task_reward_coef > 0 or any(
        term.divergence == "sampled_kl" and term.estimator == "k1" for term in trd.objective.terms
    )
    if changed and follows_gradient and not trd.upstream:
        show(
            f"WARNING actor_rollout_ref.rollout.{changed[0]}: tokens are sampled from another distribution than that "
            "at temperature 1 that k1 and the policy loss compare; their gradient is then biased"
        )
    if trd.upstream and trd.teacher is not None and rollout.temperature != 1:
        show(
            f"WARNING actor_rollout_ref.rollout.temperature={rollout.temperature}: verl scales the student's logits by "
            "it, but not the teacher's, so method opd moves the student at that temperature towards the teacher at 1"
        )
    actor = config.actor_rollout_ref.actor
    updates = actor.ppo_epochs * config.data.train_batch_size / actor.ppo_mini_batch_size
    if trd.upstream and trd.teacher is not None and updates > 1:
        show(
            f"WARNING {updates:g} updates for a batch: verl's opd takes its advantage from the student as it is "
            f"after the first of them; set {ACTOR}.ppo_mini_batch_size to the batch size and {ACTOR}.ppo_epochs=1"
        )


def check_servers(config: DictConfig, trd: TrdConfig) -> None:
    """Servers that are asked for top-k are vllm's, and may send as many as are asked for.

    Raises:
        ValueError: they are not.
    """
    plan, rollout = trd.teacher_plan, config.actor_rollout_ref.rollout
    if trd.upstream or plan is None:
        return
    engine = config.distillation.teacher_models.teacher_model.inference.name if plan.has_server else "vllm"
    for key, name in (("actor_rollout_ref.rollout.name", rollout.name), (f"{SERVER}.name", engine)):
        if plan.servers and name != "vllm":
            raise ValueError(f"{key}={name}: only the servers of vllm send a teacher's top-k; set it to vllm")
    key = f"{SERVER}.engine_kwargs.vllm.max_logprobs"
    limit = OmegaConf.select(config, key)
    if plan.has_server and plan.asks_server and limit is not None and limit != -1 and limit < trd.objective.top_k:
        raise ValueError(
            f"trd.objective.top_k={trd.objective.top_k} exceeds {key}={limit}, the most that the server sends; leave "
            "the latter out, or lower top_k"
        )


def check_agent_loop(config: DictConfig, trd: TrdConfig) -> None:
    """Responses are one turn: what tools write is shown only to the student, never to the teacher.

    Raises:
        ValueError: another agent loop is chosen.
    """
    name = config.actor_rollout_ref.rollout.agent.default_agent_loop
    if not trd.upstream and name != SINGLE_TURN:
        raise ValueError(
            f"actor_rollout_ref.rollout.agent.default_agent_loop={name}: the teacher of method {trd.method} is shown "
            f"no tools, so it would judge another conversation; set it to {SINGLE_TURN}, or choose method=grpo"
        )
