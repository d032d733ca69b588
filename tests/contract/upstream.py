"""Everything of verl, vLLM and transformers that this repository overrides or uses, as data.

`tests/contract/test_upstream.py` checks every entry by import, so an upgrade fails there, with a sentence, and not in
the middle of a run; `make docs` writes docs/upstream.md from it. Nothing here imports verl or vLLM. What only a source
shows is in upstream_texts.py, configuration keys are in upstream_config.py, and expected changes of verl and vLLM in
upstream_changes.py. What only a whole run shows is left to `tests/e2e`.
"""

from dataclasses import dataclass

VERL_VERSION = "0.9.1"
"""The only version that the entries below were read in; `pyproject.toml` pins it."""

VLLM_VERSIONS = ("0.24", "0.28")
"""vLLM on a GPU (verl's own pin) and on CPU."""


@dataclass(frozen=True)
class Override:
    """A function or method of verl or vLLM that this repository replaces or extends."""

    path: str
    """Dotted path of the original; a Ray actor class stands for the class that it was made from."""
    override: str
    """Dotted path of the override, which has to accept every call of the original."""
    why: str
    """What the override does."""


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
_EXTENSION = "verl.workers.rollout.vllm_rollout.utils.vLLMColocateWorkerExtension"
_ROLLOUT = "verl.workers.rollout.vllm_rollout.vllm_rollout.ServerAdapter"
_ENGINE = "verl.workers.engine.fsdp.transformer_impl"
_FSDP, _LM = f"{_ENGINE}.FSDPEngine", f"{_ENGINE}.FSDPEngineWithLMHead"
_REGISTRY = "verl.workers.engine.base.EngineRegistry"
_TEACHERS = "verl.experimental.teacher_loop"
_DECORATOR = "verl.single_controller.base.decorator"
_REPLICAS = "verl.workers.rollout.replica"

_EXTENDED = (
    (_RUNNER, "recipe.trd.training.task_runner.TrdTaskRunner", {"run": "checks resources, starts the watchdog"}),
    (
        _TRAINER,
        "recipe.trd.reports.reporting.Reporting",
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
        "recipe.trd.training.trainer.TrdTrainer",
        {
            "_init_resource_pool_mgr": "uses our worker",
            "_compute_old_log_prob": "skips a forward pass that no loss needs",
            "_compute_metrics": "adds the metrics of the rewrites",
            "_log_rollout_data": "writes y_o and y_r",
            "on_init_end": "checks that servers have weights, and looks before the first step",
            "on_step_end": "checks that servers have weights",
            "get_llm_client": "hands out clients with patience",
            "get_teacher_client": "the same for teachers",
            "_balance_batch": "puts samples in the same order in every run, for full_determinism",
        },
    ),
    (
        _TRAINER,
        "recipe.trd.training.checkpointing.SafeCheckpoints",
        {
            "_save_checkpoint": "saves aside, checks, renames; a full disk costs one checkpoint",
            "_load_checkpoint": "passes over damaged checkpoints",
        },
    ),
    (
        _TRAINER,
        "recipe.trd.training.shared_gpus.SharedGpus",
        {
            "_init_resource_pool_mgr": "puts the teacher into the trainer's pool",
            "on_sample_end": "sends the teacher's servers to sleep, too",
            "on_step_end": "wakes them",
        },
    ),
    (
        _WORKER,
        "recipe.trd.training.worker.TrdWorker",
        {
            "init_model": "passes our loss to the engine",
            "update_actor": "adds masks; student at temperature 1",
            "compute_log_prob": "at temperature 1",
        },
    ),
    (
        _WORKER,
        "verl_ext.engine.worker.DistillationWorker",
        {
            "init_model": "chooses our engine",
            "save_checkpoint": "saves the average of the weights",
            "load_checkpoint": "restores it",
        },
    ),
    (
        _LM,
        "verl_ext.engine.distillation.DistillationEngine",
        {
            "_build_module": "makes the model return hidden states",
            "forward_backward_batch": "counts masks over the global batch, sizes micro-batches by the longer context",
            "forward_step": "calls the loss inside the forward pass",
            "optimizer_step": "updates the average of the weights",
        },
    ),
    (
        _LM,
        "verl_ext.engine.distillation.FrozenEngine",
        {
            "_build_module": "freezes the weights",
            "_build_optimizer": "there is none",
            "_build_lr_scheduler": "there is none",
        },
    ),
    (_OUTPUT, "recipe.trd.training.agent_loop.TrainingSample", {"as_dict": "makes columns of the teacher's tokens"}),
    (
        _AGENT_WORKER,
        "recipe.trd.training.agent_loop.TrdAgentLoopWorker",
        {
            "__init__": "builds the teacher",
            "_run_agent_loop": "gives each rollout a seed, for full_determinism",
            "_compute_score": "survives a reward function that raises or hangs",
            "_agent_loop_postprocess": "rewrites a finished rollout",
            "_compute_teacher_logprobs": "does nothing: the teacher was asked before",
        },
    ),
    (_AGENT_MANAGER, "recipe.trd.training.agent_loop.TrdAgentLoopManager", {"__init__": "uses our worker"}),
    (
        _SERVER,
        "verl_ext.server.topk_server.TopKServer",
        {
            "generate": "answers with top-k log-probs",
            "_get_worker_extension_cls": "accepts the average of a LoRA student's adapter",
            "run_server": "holds two adapters",
            "run_headless": "holds two adapters",
        },
    ),
    (
        _EXTENSION,
        "verl_ext.server.lora.AdapterExtension",
        {"update_weights_from_ipc": "tells the average from the student's adapter", "_update_weights": "names it"},
    ),
    (_ROLLOUT, "verl_ext.server.lora.AdapterRollout", {"update_weights": "sends the average first"}),
    (_REPLICA, "verl_ext.server.topk_server.TopKReplica", {"__init__": "chooses the server's class"}),
)

OVERRIDES = (
    *(
        Override(f"{base}.{name}", f"{subclass}.{name}", why)
        for base, subclass, methods in _EXTENDED
        for name, why in methods.items()
    ),
    Override(
        "vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm",
        "verl_ext.cpu.vllm_weights.keep_weight",
        "keeps weights that an update can be loaded into",
    ),
)

SYMBOLS = {
    "recipe/trd/main.py": (Symbol("verl.trainer.main_ppo.run_ppo(config, task_runner_class)", "starts"),),
    "recipe/trd/reports/reporting.py": (Symbol("transfer_queue.KVBatchMeta", "type of a step's batch"),),
    "recipe/trd/training/trainer.py": (
        Symbol("verl.trainer.ppo.v1.trainer_base.register_trainer(name)", "registers our trainer"),
        Symbol("verl.workers.rollout.llm_server.LLMServerClient", "how servers are asked"),
        Symbol("transfer_queue.kv_batch_get(keys, partition_id, select_fields)", "reads the records of a step"),
        Symbol("transfer_queue.KVBatchMeta(keys, tags, partition_id)", "a step's batch"),
    ),
    "recipe/trd/preflight/checks.py": (
        Symbol("verl.trainer.ppo.utils.need_critic(config)", "verl's own checks"),
        Symbol("verl.trainer.ppo.utils.need_reference_policy(config)", "verl's own checks"),
        Symbol("verl.utils.config.validate_config(config, use_reference_policy, use_critic)", "verl's own checks"),
        Symbol("verl.utils.config.omega_conf_to_dataclass(config)", "makes dataclasses of nodes with `_target_`"),
    ),
    "recipe/trd/preflight/reward_call.py": (
        Symbol("verl.trainer.ppo.reward.get_custom_reward_fn(config)", "the reward function that a run would call"),
        Symbol(
            "verl.utils.reward_score.default_compute_score(data_source, solution_str, ground_truth, extra_info)",
            "verl's own reward function",
        ),
    ),
    "recipe/trd/preflight/surroundings.py": (Symbol("verl.utils.tracking.Tracking", "names of its loggers"),),
    "recipe/trd/training/agent_loop.py": (
        Symbol("verl.utils.config.omega_conf_to_dataclass(config)", "makes dataclasses of nodes with `_target_`"),
        Symbol(f"{_AGENT_WORKER}._compute_score(outputs, kwargs)", "grades y_o while it is rewritten"),
        Symbol(f"{_OUTPUT}(prompt_ids, response_ids, response_mask)", "what verl's agents hand over"),
        Symbol("verl.utils.hf_tokenizer(name_or_path)", "the teacher's tokenizer"),
    ),
    "recipe/trd/training/rewriting.py": (Symbol(f"{_OUTPUT}(extra_fields)", "where the reward function's words are"),),
    "recipe/trd/training/training_sample.py": (
        Symbol(
            f"{_OUTPUT}(prompt_ids, response_ids, response_mask, reward_score, num_turns, metrics, extra_fields)",
            "a sample before it enters TransferQueue",
        ),
    ),
    **{
        f"recipe/trd/config/{name}.py": (Symbol("verl.base_config.BaseConfig(_target_)", "frozen nodes"),)
        for name in ("faults", "objective", "roles", "schema")
    },
    "recipe/trd/evaluate/vllm_sampling.py": (
        Symbol("vllm.LLM(model, kwargs)", "the engine of the evaluated model"),
        Symbol(
            "vllm.SamplingParams(n, temperature, top_p, top_k, max_tokens, seed, skip_special_tokens, output_kind)",
            "a seed for each sample",
        ),
        Symbol("vllm.inputs.tokens_input(prompt_token_ids)", "prompts as token ids"),
        Symbol("vllm.lora.request.LoRARequest(lora_name, lora_int_id, lora_path)", "evaluates a LoRA adapter"),
        Symbol("vllm.v1.engine.llm_engine.LLMEngine.add_request(request_id, prompt, params, lora_request)", "asks"),
        Symbol("vllm.v1.engine.llm_engine.LLMEngine.step()", "finished samples, as they come"),
        Symbol("vllm.platforms.current_platform.is_cpu()", "no chunked prefill of seeded requests on CPU"),
    ),
    "recipe/trd/oprd/fit_rollouts.py": (
        Symbol("vllm.LLM.generate(prompts, sampling_params, use_tqdm)", "rollouts that the bridge is fitted on"),
        Symbol("vllm.SamplingParams(temperature, max_tokens, detokenize)", "how they are sampled"),
        Symbol("vllm.inputs.TokensPrompt(prompt_token_ids)", "prompts as token ids"),
    ),
    "recipe/trd/plan/memory.py": (
        Symbol("verl.utils.config.omega_conf_to_dataclass(config)", "makes dataclasses of nodes with `_target_`"),
    ),
    "recipe/trd/rewards/code_grading.py": (
        Symbol(
            "verl.utils.reward_score.sandbox_fusion.utils.check_correctness(sandbox_fusion_url, in_outs, generation, "
            "timeout, memory_limit_mb, concurrent_semaphore)",
            "runs code on a SandboxFusion server",
        ),
    ),
    "recipe/trd/training/checkpointing.py": (
        Symbol("verl.trainer.ppo.checkpoint_callback.CheckpointCallback(config)", "tells nobody of what is not whole"),
    ),
    "recipe/trd/training/first_look.py": (
        Symbol("verl.utils.tensordict_utils.get_tensordict(tensor_dict)", "a batch of one sample"),
    ),
    "verl_ext/server/patient_client.py": (
        Symbol(
            "verl.workers.rollout.llm_server.LLMServerClient.generate(request_id, prompt_ids, sampling_params)",
            "is asked again",
        ),
        Symbol("verl.workers.rollout.llm_server.LLMServerClient(config, load_balancer_handle)", "is subclassed"),
        Symbol(f"{_REPLICAS}.TokenOutput(token_ids, stop_reason, extra_fields)", "what a server answers"),
        Symbol("vllm.v1.engine.exceptions.EngineDeadError", "an engine that is dead is waited for"),
    ),
    "recipe/trd/training/preemption.py": (
        Symbol(
            "verl.trainer.ppo.checkpoint_callback.CheckpointCallback.on_save(trainer, global_step, checkpoint_dir)",
            "stops on request after a checkpoint",
        ),
    ),
    "recipe/trd/rewrite/teacher.py": (
        Symbol(
            "verl.workers.rollout.llm_server.LLMServerClient.generate(request_id, prompt_ids, sampling_params, kwargs)",
            "asks the teacher; passes further arguments to the server",
        ),
        Symbol("verl.workers.rollout.replica.TokenOutput(token_ids, stop_reason, extra_fields)", "the answer"),
    ),
    "recipe/trd/training/loss.py": (
        Symbol(f"{_LOSSES}.DistillationLossSettings(names, use_topk)", "says what the loss needs"),
        Symbol(f"{_LOSSES}.register_distillation_loss(loss_settings)", "makes loss_mode=trd known"),
        Symbol("verl.utils.metric.Metric(aggregation, value)", "sums over ranks"),
        Symbol("verl.workers.config.ActorConfig(loss_agg_mode, loss_scale_factor)", "how losses are averaged"),
        Symbol("verl.workers.config.DistillationConfig(distillation_loss)", "is passed to every loss"),
    ),
    "recipe/trd/training/advantage.py": (
        Symbol("verl.trainer.ppo.core_algos.register_adv_est(name_or_enum)", "makes adv_estimator=distillation known"),
    ),
    "recipe/trd/training/worker.py": (
        Symbol("verl.workers.engine_workers.TrainingWorker.set_loss_fn(loss_fn)", "passes our loss to the engine"),
        Symbol("verl.utils.tensordict_utils.assign_non_tensor(tensor_dict, kwargs)", "sets the temperature of a batch"),
        Symbol("verl.utils.tensordict_utils.get(tensordict, key)", "the metrics of an update"),
        Symbol("verl.utils.config.omega_conf_to_dataclass(config)", "makes dataclasses of nodes with `_target_`"),
        Symbol("verl.utils.device.get_device_id()", "where the bridge's weights lie"),
        Symbol(f"{_DECORATOR}.register(dispatch_mode)", "callable from the trainer"),
        Symbol(f"{_DECORATOR}.make_nd_compute_dataproto_dispatch_fn(mesh_name)", "splits a batch"),
    ),
    "verl_ext/engine/distillation.py": (
        Symbol(f"{_REGISTRY}.register(model_type, backend, device, vendor)", "makes our engines known"),
        Symbol(f"{_LM}.prepare_model_inputs(micro_batch)", "packed, padded or sliced inputs, also the teacher's"),
        Symbol(f"{_FSDP}.get_data_parallel_group()", "counts tokens over the global batch"),
        Symbol("verl.utils.tensordict_utils.assign_non_tensor(tensor_dict, kwargs)", "settings of a micro-batch"),
        Symbol("verl.utils.tensordict_utils.get_non_tensor_data(data, key, default)", "settings of a micro-batch"),
        Symbol("verl.utils.metric.Metric(aggregation, value)", "metrics of a micro-batch"),
        Symbol("verl.utils.metric.Metric.aggregate_dp(metric_lists)", "averages over ranks that share sequences"),
        Symbol("verl.utils.device.get_device_id()", "where a micro-batch goes"),
        Symbol("verl.utils.device.get_device_name()", "autocast"),
    ),
    "verl_ext/engine/probe.py": (
        Symbol("verl.utils.device.get_device_id()", "where the probe's tokens go"),
        Symbol(f"{_FSDP}.disable_adapter()", "the base's log-probs of a LoRA student"),
    ),
    "verl_ext/engine/observe.py": (
        Symbol(f"{_LM}.prepare_model_inputs(micro_batch)", "packed, padded or sliced inputs of the teacher"),
        Symbol(
            "verl.utils.ulysses.gather_outputs_and_unpad(x, gather_dim, unpad_dim, padding_size, grad_scaler)",
            "the teacher's positions of sliced sequences",
        ),
        Symbol("verl.utils.tensordict_utils.assign_non_tensor(tensor_dict, kwargs)", "settings of the teacher's batch"),
        Symbol("verl.utils.tensordict_utils.get_non_tensor_data(data, key, default)", "settings of a micro-batch"),
    ),
    "verl_ext/engine/self_teacher.py": (Symbol(f"{_FSDP}.disable_adapter()", "the student at step 0"),),
    "verl_ext/engine/worker.py": (
        Symbol(f"{_REGISTRY}.new(model_type, backend, args, kwargs)", "builds the teacher"),
        Symbol(f"{_FSDP}.get_per_tensor_param(layered_summon, base_sync_done)", "adapters as the server knows them"),
        Symbol(f"{_FSDP}.initialize()", "builds the teacher"),
        Symbol(f"{_DECORATOR}.register(dispatch_mode)", "callable from the trainer"),
        Symbol("verl.utils.device.get_device_id()", "where the teacher's weights lie"),
        Symbol("verl.utils.device.get_device_name()", "where the teacher's weights lie"),
        Symbol(f"{_FSDP}.to(device, model, optimizer, grad)", "offloads the teacher"),
        Symbol("verl.trainer.config.CheckpointConfig(save_contents, load_contents)", "a teacher saves nothing"),
        Symbol(
            "verl.workers.config.HFModelConfig(path, trust_remote_code, external_lib, override_config, "
            "use_remove_padding, enable_gradient_checkpointing)",
            "the teacher's model",
        ),
    ),
    "verl_ext/engine/causal_lm.py": (
        Symbol("transformers.PreTrainedModel.get_output_embeddings()", "the output head"),
        Symbol("transformers.PreTrainedConfig.get_text_config()", "what a model does to its logits"),
    ),
    "verl_ext/server/lora.py": (
        Symbol(
            "verl.utils.vllm.TensorLoRARequest(lora_name, lora_int_id, lora_path, peft_config, lora_tensors)", "adds"
        ),
        Symbol("vllm.lora.request.LoRARequest(lora_name, lora_int_id, lora_path)", "names the average"),
        Symbol("vllm.v1.worker.gpu_worker.Worker.add_lora(lora_request)", "adds"),
        Symbol("vllm.v1.worker.gpu_worker.Worker.remove_lora(lora_id)", "replaces"),
    ),
    "verl_ext/server/topk_server.py": (
        Symbol(f"{_REPLICAS}.RolloutReplicaRegistry.register(name, loader)", "replaces vLLM's replica"),
        Symbol(f"{_REPLICAS}.TokenOutput(token_ids, stop_reason, extra_fields)", "what a server answers"),
        Symbol(
            f"{_SERVER}._park_until_admitted(request_id)",
            "waits while weights are updated; counts the admitted requests",
        ),
        Symbol(
            "vllm.SamplingParams(max_tokens, temperature, top_p, top_k, logprobs, prompt_logprobs, flat_logprobs, "
            "detokenize, output_kind)",
            "asks for flat log-probs without text",
        ),
        Symbol("vllm.inputs.TokensPrompt(prompt_token_ids)", "token in, token out"),
        Symbol("vllm.lora.request.LoRARequest(lora_name, lora_int_id, lora_path)", "base weights or an adapter"),
        Symbol("vllm.logprobs.FlatLogprobs(start_indices, token_ids, logprobs)", "arrays of log-probs"),
        Symbol("vllm.outputs.RequestOutput(outputs, prompt_logprobs)", "what vLLM says to a request"),
        Symbol("vllm.v1.engine.async_llm.AsyncLLM.generate(prompt, sampling_params, request_id, lora_request)", "asks"),
    ),
    "verl_ext/cpu/platform.py": (
        Symbol("verl.plugin.platform.platform_base.PlatformBase", "is subclassed"),
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
"""By the file of this repository that uses them."""

ATTRIBUTES = {
    "recipe/trd/training/task_runner.py": (
        Attribute(f"{_RUNNER}.trainer", "finds the servers to watch"),
        Attribute(f"{_REPLICAS}.RolloutReplica.servers", "servers"),
    ),
    "recipe/trd/reports/reporting.py": (
        Attribute(f"{_TRAINER}.trainer_mode", "set to sync, whatever name our trainer is registered by"),
        Attribute(f"{_TRAINER}.config", "reads the trd node"),
        Attribute(f"{_TRAINER}.global_steps", "numbers steps"),
        Attribute(f"{_TRAINER}.total_training_steps", "time left"),
        Attribute(f"{_TRAINER}.val_dataset", "standard error of the accuracy"),
        Attribute("verl.trainer.ppo.v1.replay_buffer.ReplayBuffer.poll_interval", "is shortened"),
    ),
    "recipe/trd/training/trainer.py": (
        Attribute(f"{_TRAINER}.tokenizer", "texts of the dump"),
        Attribute(f"{_TRAINER}.llm_server_manager", "the student's servers"),
        Attribute(f"{_TRAINER}.teacher_model_manager", "the teacher's servers"),
        Attribute("verl.workers.rollout.llm_server.LLMServerManager.rollout_replicas", "servers"),
        Attribute(f"{_TEACHERS}.teacher_model.MultiTeacherModelManager.teacher_model_managers", "servers"),
        Attribute(f"{_TEACHERS}.teacher_model.TeacherModelManager.rollout_replicas", "servers"),
        Attribute(f"{_REPLICAS}.RolloutReplica.server_handle", "is asked for its weights"),
        Attribute(f"{_TRAINER}.role_worker_mapping", "uses our worker"),
        Attribute(f"{_TRAINER}._dump_executor", "writes the dump beside the training"),
        Attribute("verl.trainer.ppo.utils.Role.ActorRollout", "uses our worker"),
        Attribute("verl.trainer.ppo.utils.Role.ActorRolloutRef", "uses our worker"),
    ),
    "recipe/trd/training/shared_gpus.py": (
        Attribute("verl.trainer.ppo.utils.Role.TeacherModel", "joins the trainer's resource pool"),
        Attribute("verl.trainer.ppo.utils.Role.ActorRollout", "has that pool"),
        Attribute("verl.trainer.ppo.utils.Role.ActorRolloutRef", "has that pool"),
        Attribute("verl.trainer.ppo.utils.Role.Actor", "has that pool"),
        Attribute(f"{_TRAINER}.resource_pool_manager", "which role has which pool"),
        Attribute(f"{_TRAINER}.teacher_model_manager", "the teacher's servers"),
    ),
    "recipe/trd/training/agent_loop.py": (
        Attribute(f"{_AGENT_WORKER}.config", "reads the trd node"),
        Attribute(f"{_AGENT_WORKER}.teacher_client", "asks the teacher"),
        Attribute(f"{_AGENT_WORKER}.llm_client", "asks the student's server"),
        Attribute(f"{_AGENT_MANAGER}.agent_loop_workers_class", "uses our worker"),
    ),
    "recipe/trd/training/worker.py": (
        Attribute(f"{_WORKER}.actor", "the engine that gets our loss"),
        Attribute(f"{_WORKER}.loss_fn", "its configurations are passed on"),
        Attribute(f"{_DECORATOR}.Dispatch.ONE_TO_ALL", "init_model"),
    ),
    "verl_ext/engine/distillation.py": (
        Attribute(f"{_FSDP}.module", "the model behind FSDP"),
        Attribute(f"{_FSDP}._autocast_dtype", "precision of the forward pass"),
        Attribute(f"{_FSDP}.use_ulysses_sp", "whether sequences are sliced"),
        Attribute(f"{_FSDP}.ulysses_sequence_parallel_size", "how often"),
        Attribute(f"{_FSDP}.ulysses_parallel_group", "which slice is this rank's"),
    ),
    "verl_ext/engine/worker.py": (
        Attribute("verl.workers.engine_workers.TrainingWorker.engine", "the student's engine"),
        Attribute(f"{_WORKER}.actor", "the student's engine"),
        Attribute(f"{_WORKER}.rollout", "sends the average"),
        Attribute(f"{_WORKER}.layered_summon", "how adapters are gathered"),
        Attribute(f"{_DECORATOR}.Dispatch.ONE_TO_ALL", "init_model, checkpoints"),
        Attribute(f"{_FSDP}.model_config", "the teacher shares settings"),
        Attribute(f"{_FSDP}.engine_config", "the teacher is sharded in the student's way"),
        Attribute(f"{_FSDP}.is_param_offload_enabled", "where the teacher's weights lie"),
    ),
    "recipe/trd/evaluate/vllm_sampling.py": (
        Attribute("vllm.sampling_params.RequestOutputKind.FINAL_ONLY", "one answer"),
    ),
    "verl_ext/engine/causal_lm.py": (Attribute("transformers.PreTrainedModel.base_model", "the model without head"),),
    "verl_ext/server/topk_server.py": (
        Attribute(f"{_REPLICA}.server_class", "is replaced"),
        Attribute(f"{_REPLICA}.is_reward_model", "but for reward models"),
        Attribute(f"{_SERVER}.lora_as_adapter", "whether the student's adapters lie beside its base"),
        Attribute(f"{_SERVER}.model_config", "number of tokens"),
        Attribute(f"{_SERVER}.engine", "runs a request; has died or not"),
        Attribute(f"{_SERVER}.config", "max_model_len"),
        Attribute(f"{_SERVER}.global_steps", "version of the weights"),
        Attribute(f"{_SERVER}._admitting", "verl waits until it is 0"),
        Attribute("vllm.sampling_params.RequestOutputKind.FINAL_ONLY", "one answer"),
    ),
    "verl_ext/runtime/watchdog.py": (
        Attribute(f"{_SERVER}.engine", "runs a request; has died or not"),
        Attribute("vllm.v1.engine.async_llm.AsyncLLM.errored", "whether an engine has died"),
        Attribute("vllm.v1.engine.async_llm.AsyncLLM.dead_error", "why"),
    ),
    "verl_ext/cpu/weight_transfer.py": (Attribute(f"{_TRANSFER}.socket", "gets the time limit"),),
    "recipe/trd/training/loss.py": (Attribute("verl.utils.metric.AggregationType.SUM", "sums over ranks"),),
}
"""By the file of this repository that uses them."""
