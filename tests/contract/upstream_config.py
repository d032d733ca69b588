"""Keys of verl's configuration that this repository reads, and keys that it adds, as data.

`tests/contract/test_upstream.py` checks every entry, like those of upstream.py.
"""

_RUNNER = "verl.trainer.main_ppo.TaskRunnerV1"
_ENGINE = "verl.workers.engine.fsdp.transformer_impl"
_TEACHER = "distillation.teacher_models.teacher_model"

CONFIG_KEYS = {
    "trainer": (
        *("use_v1", "device", "nnodes", "n_gpus_per_node"),
        *("default_local_dir", "resume_mode", "rollout_data_dir", "validation_data_dir"),
    ),
    "trainer.v1": ("trainer_mode",),
    "algorithm": ("adv_estimator", "use_kl_in_reward"),
    "data": (
        *("train_files", "val_files", "prompt_key", "reward_fn_key", "apply_chat_template_kwargs"),
        *("max_prompt_length", "max_response_length", "train_batch_size"),
    ),
    "actor_rollout_ref.model": (
        *("path", "trust_remote_code", "use_fused_kernels", "custom_chat_template"),
        *("lora_rank", "lora_adapter_path"),
    ),
    "actor_rollout_ref.model.lora": ("merge",),
    "actor_rollout_ref.actor": (
        *("strategy", "loss_agg_mode", "loss_scale_factor", "use_kl_loss", "entropy_coeff", "ppo_epochs"),
        *("use_dynamic_bsz", "ppo_mini_batch_size", "ppo_micro_batch_size_per_gpu", "ppo_max_token_len_per_gpu"),
    ),
    "actor_rollout_ref.actor.fsdp_config": ("pad_to_length", "ulysses_sequence_parallel_size"),
    "actor_rollout_ref.rollout": ("n", "max_model_len", "calculate_log_probs", "logprobs_mode"),
    "actor_rollout_ref.rollout.engine_kwargs": ("vllm",),
    "actor_rollout_ref.rollout.agent": ("num_workers",),
    "actor_rollout_ref.rollout.multi_turn": ("enable",),
    "distillation": ("enabled", "nnodes", "n_gpus_per_node"),
    "distillation.distillation_loss": ("loss_mode", "topk", "use_task_rewards", "use_policy_gradient"),
    _TEACHER: ("model_path",),
    f"{_TEACHER}.inference": ("max_model_len",),
    "reward": ("num_workers",),
    "reward.custom_reward_function": ("path",),
    "reward.reward_model": ("enable", "enable_resource_pool", "nnodes", "n_gpus_per_node"),
    "transfer_queue.backend.SimpleStorage": ("num_data_storage_units",),
    "ray_kwargs": ("ray_init",),
}
"""Keys of verl's configuration that our code reads or checks, by their node."""

ADDED_KEYS = {
    "data.refine_template": "recipe",
    "data.privileged_template": "recipe",
    "data.max_refine_length": "recipe",
    "data.reference_key": "recipe",
    "data.reward_function": "recipe",
    "data.reward_kwargs": "recipe",
    "data.reward_kwargs.max_tests": "recipe",
    "data.reward_kwargs.timeout_s": "recipe",
    "data.reward_kwargs.memory_mb": "recipe",
    "data.reward_kwargs.tolerance": "recipe",
    "data.reward_kwargs.score": "recipe",
    "data.reward_kwargs.sandbox_fusion_url": "recipe",
    "data.reward_kwargs.sandbox_fusion_max_concurrent": "recipe",
    "reward.custom_reward_function.reward_kwargs": "verl.trainer.ppo.reward",
    "actor_rollout_ref.rollout.enable_sleep_mode": "verl.workers.config.RolloutConfig",
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class": f"{_RUNNER}.init_agent_loop_manager",
    "actor_rollout_ref.model.override_config.attn_implementation": "verl.workers.config.HFModelConfig",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype": f"{_ENGINE}.FSDPEngine",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.reduce_dtype": f"{_ENGINE}.FSDPEngine",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.buffer_dtype": f"{_ENGINE}.FSDPEngine",
    f"{_TEACHER}.inference.logprobs_mode": "verl.workers.config.RolloutConfig",
    f"{_TEACHER}.inference.enable_sleep_mode": "verl.workers.config.RolloutConfig",
    "ray_kwargs.ray_init.num_gpus": "ray.init",
    "ray_kwargs.ray_init.include_dashboard": "ray.init",
    "ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH": "verl.utils.tracking",
    "ray_kwargs.ray_init.runtime_env.env_vars.TENSORBOARD_DIR": "verl.utils.tracking",
    "ray_kwargs.ray_init.runtime_env.env_vars.WANDB_DIR": "recipe",
}
"""Keys that our YAML files add to verl's: `recipe`, or the source of verl in which the last part of the key is read."""
