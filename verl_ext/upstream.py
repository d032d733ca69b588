"""Everything of verl and vLLM that this repository overrides or leans on, as data.

`tests/contract/test_upstream.py` checks every entry by import, so an upgrade fails there, with a sentence, and not in
the middle of a run. Nothing here imports verl or vLLM. What only a whole run shows is left to `tests/e2e`.
"""

from dataclasses import dataclass

VERL_VERSION = "0.9.1"
"""The only version that the entries below were read in; `pyproject.toml` pins it."""

VLLM_VERSIONS = ("0.24", "0.28")
"""vLLM on a GPU (verl's own pin) and on CPU."""


@dataclass(frozen=True)
class Override:
    """A function or method that one of ours replaces or extends; ours has to accept every call of theirs."""

    path: str
    """Dotted path of theirs; a Ray actor class stands for the class behind it."""
    ours: str
    """Dotted path of ours."""
    why: str
    """What ours does."""


@dataclass(frozen=True)
class Symbol:
    """A function, a method or a class that we call, subclass or register with."""

    call: str
    """Dotted path with the parameters that we pass, or for a class also the fields that we read, by name."""
    why: str
    """What we use it for."""


@dataclass(frozen=True)
class Attribute:
    """An attribute that we read or set: of a class, or of its instances, which assign it as `self.<name>`."""

    path: str
    """Dotted path of the class, then the attribute."""
    why: str


@dataclass(frozen=True)
class Text:
    """A name that only exists inside the source: a key, a file, an environment variable, the shape of a call."""

    path: str
    """Dotted path of the function, method, class or module whose source has to contain it."""
    text: str
    """With every run of white space as one space."""
    why: str


_TRAINER = "verl.trainer.ppo.v1.trainer_sync.PPOTrainerSync"
_RUNNER = "verl.trainer.main_ppo.TaskRunnerV1"
_WORKER = "verl.workers.engine_workers.ActorRolloutRefWorker"
_AGENT_WORKER = "verl.trainer.ppo.v1.agent_loop_tq.AgentLoopWorkerTQ"
_AGENT_MANAGER = "verl.trainer.ppo.v1.agent_loop_tq.AgentLoopManagerTQ"
_OUTPUT = "verl.experimental.agent_loop.agent_loop.AgentLoopOutput"
_LOSSES = "verl.trainer.distillation.losses"
_SERVER = "verl.workers.rollout.vllm_rollout.vllm_async_server.vLLMHttpServer"
_REPLICA = "verl.workers.rollout.vllm_rollout.vllm_async_server.vLLMReplica"
_TRANSFER = "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer.BucketedWeightSender"
_ENGINE = "verl.workers.engine.fsdp.transformer_impl"
_TEACHERS = "verl.experimental.teacher_loop"
_DECORATOR = "verl.single_controller.base.decorator"
_REPLICAS = "verl.workers.rollout.replica"

_EXTENDED = (
    (_RUNNER, "recipe.trd.task_runner.TrdTaskRunner", {"run": "checks resources, starts the watchdog"}),
    (
        _TRAINER,
        "recipe.trd.reporting.Reporting",
        {
            "_init_tokenizer": "names the stage",
            "_init_resource_pool_mgr": "names the stage",
            "_build_replay_buffer": "sets the poll interval",
            "_load_checkpoint": "names the stage",
            "on_train_begin": "starts the progress line",
            "_validate": "prints the accuracy",
            "_compute_metrics": "prints the step",
        },
    ),
    (
        _TRAINER,
        "recipe.trd.trainer.TrdTrainer",
        {
            "_init_resource_pool_mgr": "puts in our worker",
            "_compute_old_log_prob": "skips a forward pass that no loss needs",
            "_compute_metrics": "adds the metrics of the rewrites",
            "_log_rollout_data": "writes y_o and y_r",
        },
    ),
    (
        _WORKER,
        "recipe.trd.worker.TrdWorker",
        {"init_model": "hands our loss to the engine", "update_actor": "student at temperature 1"},
    ),
    (
        _AGENT_WORKER,
        "recipe.trd.agent_loop.TrdAgentLoopWorker",
        {
            "__init__": "builds the teacher",
            "_agent_loop_postprocess": "rewrites a finished rollout",
            "_compute_teacher_logprobs": "the teacher's rows under its own context",
        },
    ),
    (_AGENT_MANAGER, "recipe.trd.agent_loop.TrdAgentLoopManager", {"__init__": "puts in our worker"}),
    (_SERVER, "verl_ext.topk_server.TopKServer", {"generate": "answers with top-k log-probs"}),
    (_REPLICA, "verl_ext.topk_server.TopKTeacherReplica", {"__init__": "chooses the server's class"}),
)

OVERRIDES = (
    *(
        Override(f"{theirs}.{name}", f"{ours}.{name}", why)
        for theirs, ours, methods in _EXTENDED
        for name, why in methods.items()
    ),
    Override(
        f"{_LOSSES}.distillation_ppo_loss", "recipe.trd.objective.trd_loss", "the loss that the engine calls twice"
    ),
    Override(
        "vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm",
        "verl_ext.cpu.vllm_weights.keep_weight",
        "keeps weights that an update can be loaded into",
    ),
)

SYMBOLS = {
    "recipe/trd/main.py": (Symbol("verl.trainer.main_ppo.run_ppo(config, task_runner_class)", "starts"),),
    "recipe/trd/trainer.py": (
        Symbol("verl.trainer.ppo.v1.trainer_base.register_trainer(name)", "names ours"),
        Symbol("transfer_queue.kv_batch_get(keys, partition_id, select_fields)", "reads the records of a step"),
        Symbol("transfer_queue.KVBatchMeta(keys, tags, partition_id)", "a step's batch"),
    ),
    "recipe/trd/preflight.py": (
        Symbol("verl.trainer.ppo.utils.need_critic(config)", "verl's own checks"),
        Symbol("verl.trainer.ppo.utils.need_reference_policy(config)", "verl's own checks"),
        Symbol("verl.utils.config.validate_config(config, use_reference_policy, use_critic)", "verl's own checks"),
        Symbol("verl.utils.config.omega_conf_to_dataclass(config)", "makes dataclasses of nodes with _target_"),
    ),
    "recipe/trd/agent_loop.py": (
        Symbol("verl.utils.config.omega_conf_to_dataclass(config)", "makes dataclasses of nodes with _target_"),
        Symbol(f"{_AGENT_WORKER}._compute_score(outputs, kwargs)", "grades y_o while it is rewritten"),
        Symbol(
            f"{_OUTPUT}(prompt_ids, response_ids, response_mask, reward_score, num_turns, metrics, extra_fields)",
            "a sample before it enters TransferQueue",
        ),
        Symbol("verl.utils.hf_tokenizer(name_or_path)", "the teacher's tokenizer"),
    ),
    "recipe/trd/schema.py": (Symbol("verl.base_config.BaseConfig(_target_)", "frozen nodes"),),
    "recipe/trd/rewrite.py": (
        Symbol(
            "verl.workers.rollout.llm_server.LLMServerClient.generate(request_id, prompt_ids, sampling_params, kwargs)",
            "asks the teacher; hands further arguments to the server",
        ),
    ),
    "recipe/trd/objective.py": (
        Symbol(f"{_LOSSES}.DistillationLossSettings(names, use_topk)", "says what the loss needs"),
        Symbol(f"{_LOSSES}.register_distillation_loss(loss_settings)", "makes loss_mode=trd known"),
        Symbol(
            "verl.trainer.ppo.core_algos.agg_loss(loss_mat, loss_mask, loss_agg_mode, dp_size, batch_num_tokens, "
            "global_batch_size, loss_scale_factor)",
            "reduces over the global batch",
        ),
        Symbol("verl.utils.metric.Metric(aggregation, value)", "sums over ranks"),
        Symbol("verl.workers.utils.padding.no_padding_2_padding(tensor, data)", "response rows of packed values"),
        Symbol("verl.utils.ulysses.slice_input_tensor(x, dim)", "this rank's slice of a sequence"),
        Symbol("verl.utils.ulysses.get_ulysses_sequence_parallel_world_size()", "whether sequences are sliced"),
        Symbol("verl.workers.config.ActorConfig(loss_agg_mode, loss_scale_factor)", "how losses are averaged"),
    ),
    "recipe/trd/advantage.py": (
        Symbol("verl.trainer.ppo.core_algos.register_adv_est(name_or_enum)", "makes adv_estimator=distillation known"),
    ),
    "recipe/trd/worker.py": (
        Symbol("verl.workers.engine_workers.TrainingWorker.set_loss_fn(loss_fn)", "hands our loss to the engine"),
        Symbol("verl.utils.tensordict_utils.assign_non_tensor(tensor_dict, kwargs)", "sets the temperature of a batch"),
        Symbol(f"{_DECORATOR}.register(dispatch_mode)", "callable from the trainer"),
        Symbol(f"{_DECORATOR}.make_nd_compute_dataproto_dispatch_fn(mesh_name)", "splits a batch"),
    ),
    "verl_ext/topk_server.py": (
        Symbol(f"{_REPLICAS}.RolloutReplicaRegistry.register(name, loader)", "replaces vLLM's replica"),
        Symbol(f"{_REPLICAS}.TokenOutput(token_ids, stop_reason, extra_fields)", "what a server answers"),
        Symbol(f"{_SERVER}._park_until_admitted(request_id)", "the gate around weight updates; counts the admitted"),
        Symbol(
            "vllm.SamplingParams(max_tokens, temperature, top_p, top_k, logprobs, prompt_logprobs, flat_logprobs, "
            "detokenize, output_kind)",
            "asks for flat log-probs without text",
        ),
        Symbol("vllm.inputs.TokensPrompt(prompt_token_ids)", "token in, token out"),
        Symbol("vllm.logprobs.FlatLogprobs(start_indices, token_ids, logprobs)", "arrays of log-probs"),
        Symbol("vllm.v1.engine.async_llm.AsyncLLM.generate(prompt, sampling_params, request_id)", "runs a request"),
    ),
    "verl_ext/cpu/platform.py": (
        Symbol(
            "verl.plugin.platform.platform_manager.PlatformRegistry.register(platform)", "makes VERL_PLATFORM=cpu known"
        ),
    ),
    "verl_ext/cpu/training_worker.py": (
        Symbol(
            "verl.utils.distributed.initialize_global_process_group_ray(timeout_second, backend)",
            "wrapped, to pass one gloo backend",
        ),
    ),
    "verl_ext/cpu/weight_transfer.py": (
        Symbol(f"{_TRANSFER}._init_socket()", "wrapped, to bound waits"),
        Symbol(f"{_TRANSFER}.async_send_weights(weights)", "wrapped, to explain a receiver that died"),
    ),
}
"""By the file of ours that uses them."""

ATTRIBUTES = {
    "recipe/trd/task_runner.py": (
        Attribute(f"{_RUNNER}.trainer", "finds the servers to watch"),
        Attribute(f"{_TRAINER}.llm_server_manager", "the student's servers"),
        Attribute(f"{_TRAINER}.teacher_model_manager", "the teacher's servers"),
        Attribute("verl.workers.rollout.llm_server.LLMServerManager.rollout_replicas", "servers"),
        Attribute(f"{_TEACHERS}.teacher_model.MultiTeacherModelManager.teacher_model_managers", "servers"),
        Attribute(f"{_TEACHERS}.teacher_model.TeacherModelManager.rollout_replicas", "servers"),
        Attribute(f"{_REPLICAS}.RolloutReplica.servers", "servers"),
    ),
    "recipe/trd/reporting.py": (
        Attribute(f"{_TRAINER}.trainer_mode", "pinned to sync, whatever name ours is registered by"),
        Attribute(f"{_TRAINER}.config", "reads the trd node"),
        Attribute(f"{_TRAINER}.global_steps", "numbers steps"),
        Attribute(f"{_TRAINER}.total_training_steps", "time left"),
        Attribute(f"{_TRAINER}.val_dataset", "standard error of the accuracy"),
        Attribute("verl.trainer.ppo.v1.replay_buffer.ReplayBuffer.poll_interval", "is shortened"),
    ),
    "recipe/trd/trainer.py": (
        Attribute(f"{_TRAINER}.tokenizer", "texts of the dump"),
        Attribute(f"{_TRAINER}.role_worker_mapping", "puts in our worker"),
        Attribute(f"{_TRAINER}._dump_executor", "writes the dump beside the training"),
        Attribute("verl.trainer.ppo.utils.Role.ActorRollout", "puts in our worker"),
        Attribute("verl.trainer.ppo.utils.Role.ActorRolloutRef", "puts in our worker"),
    ),
    "recipe/trd/agent_loop.py": (
        Attribute(f"{_AGENT_WORKER}.config", "reads the trd node"),
        Attribute(f"{_AGENT_WORKER}.teacher_client", "asks the teacher"),
        Attribute(f"{_AGENT_WORKER}.teacher_server_manager", "where the teacher lies"),
        Attribute(
            f"{_TEACHERS}.teacher_manager.AsyncTeacherLLMServerManager.teacher_model_configs", "where the teacher lies"
        ),
        Attribute(f"{_AGENT_MANAGER}.agent_loop_workers_class", "puts in our worker"),
    ),
    "recipe/trd/worker.py": (
        Attribute(f"{_WORKER}.actor", "the engine that gets our loss"),
        Attribute(f"{_WORKER}.loss_fn", "its configurations are passed on"),
        Attribute(f"{_DECORATOR}.Dispatch.ONE_TO_ALL", "init_model"),
    ),
    "verl_ext/topk_server.py": (
        Attribute(f"{_REPLICA}.server_class", "is replaced for teachers"),
        Attribute(f"{_REPLICA}.is_teacher_model", "which replicas are teachers"),
        Attribute(f"{_SERVER}.engine", "runs a request; has died or not"),
        Attribute(f"{_SERVER}.config", "max_model_len"),
        Attribute(f"{_SERVER}.global_steps", "version of the weights"),
        Attribute(f"{_SERVER}._admitting", "verl waits until it is 0"),
        Attribute("vllm.sampling_params.RequestOutputKind.FINAL_ONLY", "one answer"),
    ),
    "verl_ext/watchdog.py": (
        Attribute(f"{_SERVER}.engine", "runs a request; has died or not"),
        Attribute("vllm.v1.engine.async_llm.AsyncLLM.errored", "whether an engine has died"),
        Attribute("vllm.v1.engine.async_llm.AsyncLLM.dead_error", "why"),
    ),
    "verl_ext/cpu/weight_transfer.py": (Attribute(f"{_TRANSFER}.socket", "gets the time limit"),),
    "recipe/trd/objective.py": (Attribute("verl.utils.metric.AggregationType.SUM", "sums over ranks"),),
}
"""By the file of ours that uses them."""

TEXTS = {
    "recipe/trd/objective.py": (
        Text(f"{_TRAINER}._update_actor", "distillation_use_topk", "the engine calls the loss twice"),
        Text(f"{_TRAINER}._update_actor", "global_batch_size", "denominator of sequence means"),
        Text(f"{_ENGINE}.FSDPEngine.forward_backward_batch", "batch_num_tokens=", "denominator"),
        Text(f"{_ENGINE}.FSDPEngine.forward_backward_batch", "dp_size=", "ranks are averaged"),
        Text(
            f"{_ENGINE}.FSDPEngineWithLMHead.prepare_model_outputs",
            "logits_processor_func(student_logits=logits_rmpad.unsqueeze(0), data=micro_batch)",
            "first call of the loss",
        ),
        Text(
            f"{_ENGINE}.FSDPEngineWithLMHead.forward_step",
            "model_output=model_output, data=micro_batch, dp_group=",
            "second call of the loss",
        ),
    ),
    "recipe/trd/worker.py": (
        Text(
            f"{_WORKER}.init_model",
            "distillation_ppo_loss, config=actor_config, distillation_config=distillation_config",
            "keywords that are passed on to our loss",
        ),
    ),
    "recipe/trd/agent_loop.py": (
        Text(f"{_OUTPUT}.as_dict", 'extra_fields.pop("teacher_ids"', "rows become tensors"),
        Text(f"{_OUTPUT}.as_dict", 'extra_fields.pop("teacher_logprobs"', "rows become tensors"),
        Text(f"{_AGENT_WORKER}._compute_score", "final_output.reward_score is None", "grades once"),
        Text(f"{_AGENT_WORKER}._compute_score", 'extra_fields["reward_extra_info"]', "acc"),
    ),
    "recipe/trd/trainer.py": (Text("verl.trainer.ppo.padding_utils", "is_padding=True", "rows without a record"),),
    "recipe/trd/run_folder.py": (
        Text(f"{_TRAINER}._save_checkpoint", "latest_checkpointed_iteration.txt", "resumes or not"),
    ),
    "configs/trd_trainer.yaml": (
        Text("verl.utils.tracking", "VERL_FILE_LOGGER_PATH", "metrics lie in the run folder"),
        Text("verl.utils.tracking", "TENSORBOARD_DIR", "metrics lie in the run folder"),
    ),
    "verl_ext/leftovers.py": (
        Text(f"{_TRANSFER}._init_buffer", 'f"verl_weights_', "buffers that a crash leaves behind"),
    ),
    "verl_ext/resources.py": (
        Text("verl.single_controller.ray.base.ResourcePoolManager", "max_colocate_count: int = 3", "CPUs"),
    ),
    "verl_ext/plugin.py": (Text("verl.plugin.platform.platform_manager", "VERL_PLATFORM", "chooses the CPU"),),
    "verl_ext/cpu/__init__.py": (
        Text(
            "verl.workers.engine.base.EngineRegistry.get_engine_cls",
            "VERL_ENGINE_DEVICE",
            "finds the FSDP engine on CPU",
        ),
    ),
    "pyproject.toml": (Text("verl", "verl.plugins", "loads the plug-in in every process"),),
    "verl_ext/cpu/vllm_weights.py": (
        Text(
            "vllm.model_executor.layers.linear",
            "dispatch_cpu_unquantized_gemm(layer, remove_weight=True)",
            "looked up when a layer is loaded",
        ),
    ),
}
"""By the file of ours that relies on them."""

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
    "actor_rollout_ref.model": ("path", "trust_remote_code", "use_fused_kernels"),
    "actor_rollout_ref.actor": (
        *("strategy", "loss_agg_mode", "loss_scale_factor", "use_kl_loss", "entropy_coeff"),
        *("use_dynamic_bsz", "ppo_mini_batch_size", "ppo_micro_batch_size_per_gpu"),
    ),
    "actor_rollout_ref.actor.fsdp_config": ("pad_to_length",),
    "actor_rollout_ref.rollout": ("n", "max_model_len", "calculate_log_probs"),
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
    "data.refine_template": "ours",
    "data.privileged_template": "ours",
    "data.max_refine_length": "ours",
    "data.reference_key": "ours",
    "data.reward_function": "ours",
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
    "ray_kwargs.ray_init.runtime_env.env_vars.WANDB_DIR": "ours",
}
"""Keys that our YAML files add to verl's: `ours`, or the source in which the last part of the key is read."""
