"""What has to stand in the source of verl, vLLM and transformers, as data: no signature shows it.

`tests/contract/test_upstream.py` checks every entry, like those of upstream.py.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """What no signature shows: a key, a file, an environment variable, the form of a call."""

    path: str
    """Dotted path of the function, method, class or module whose source has to contain it."""
    text: str
    """With every run of white space as one space."""
    why: str


_AGENT_WORKER = "verl.trainer.ppo.v1.agent_loop_tq.AgentLoopWorkerTQ"
_EXTENSION = "verl.workers.rollout.vllm_rollout.utils.vLLMColocateWorkerExtension"
_ENGINE = "verl.workers.engine.fsdp.transformer_impl"
_OUTPUT = "verl.experimental.agent_loop.agent_loop.AgentLoopOutput"
_REGISTRY = "verl.workers.engine.base.EngineRegistry"
_TRAINER = "verl.trainer.ppo.v1.trainer_sync.PPOTrainerSync"
_TRANSFER = "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer.BucketedWeightSender"
_WORKER = "verl.workers.engine_workers.ActorRolloutRefWorker"
_FSDP, _LM = f"{_ENGINE}.FSDPEngine", f"{_ENGINE}.FSDPEngineWithLMHead"

TEXTS = {
    "recipe/trd/training/loss.py": (
        Text(f"{_TRAINER}._update_actor", '"global_batch_size": ppo_mini_batch_size', "denominator of sequence means"),
        Text(f"{_FSDP}.forward_backward_batch", "dp_size=self.get_data_parallel_size()", "ranks are averaged"),
        Text(f"{_TRAINER}._compute_old_log_prob", "response_from_nested(", "old log-probs lie as responses do"),
        Text(
            "verl.trainer.ppo.padding_utils.construct_minimal_padding_template",
            'template_sample["teacher_ids"] = teacher_ids.new_full((sequence_length',
            "the teacher's positions in padding",
        ),
    ),
    "recipe/trd/training/reduction.py": tuple(
        Text("verl.trainer.ppo.core_algos.agg_loss", f'"{mode}"', "the same means as weights of tokens")
        for mode in (
            *("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm"),
            "seq-mean-token-mean",
        )
    ),
    "recipe/trd/training/worker.py": (
        Text(
            f"{_WORKER}.init_model",
            "distillation_ppo_loss, config=actor_config, distillation_config=distillation_config",
            "the actor's configuration is passed on to our loss",
        ),
        Text(f"{_WORKER}.init_model", "partial(ppo_loss, config=actor_config)", "the same without a teacher's server"),
        Text(
            "verl.workers.engine_workers.TrainingWorker.train_mini_batch",
            'mini_batch_size = tu.pop(data, key="mini_batch_size"',
            "counts samples, of which a task reward beside y_r has two",
        ),
        Text(f"{_TRAINER}._compute_old_log_prob", '"compute_loss": False', "log-probs need no loss"),
    ),
    "verl_ext/engine/distillation.py": (
        Text(f"{_REGISTRY}.get_engine_cls", 'os.getenv("VERL_ENGINE_VENDOR")', "finds our engine"),
        Text(
            f"{_FSDP}.forward_backward_batch",
            "self.forward_step(micro_batch, loss_function=loss_function, forward_only=forward_only)",
            "one call of our engine for a micro-batch",
        ),
        Text(
            "verl.utils.seqlen_balancing.rearrange_micro_batches",
            'input_ids = batch["input_ids"]',
            "micro-batches are cut by the longer of two contexts",
        ),
        Text("verl.workers.engine.utils.postprocess_batch_func", 'o["loss"]', "what we report of a micro-batch"),
    ),
    "verl_ext/engine/observe.py": (
        Text(f"{_LM}.prepare_model_inputs", 'output_args["pad_size"]', "padding of sliced sequences"),
        Text(f"{_LM}.prepare_model_inputs", 'micro_batch["temperature"]', "the teacher's is 1"),
    ),
    "verl_ext/server/topk_server.py": (
        Text(
            "verl.workers.rollout.vllm_rollout.utils",
            "VLLM_LORA_INT_ID = ",
            "how a request names the student's adapter",
        ),
        Text(
            "verl.workers.rollout.vllm_rollout.utils", "VLLM_LORA_NAME = ", "how a request names the student's adapter"
        ),
        Text(
            "verl.workers.rollout.vllm_rollout.utils", "VLLM_LORA_PATH = ", "how a request names the student's adapter"
        ),
    ),
    "verl_ext/server/lora.py": (
        Text("verl.workers.rollout.vllm_rollout.utils", "VLLM_LORA_INT_ID = ", "number of the student's adapter"),
        Text(
            "verl.workers.rollout.base.get_rollout_class",
            "_ROLLOUT_REGISTRY[(rollout_name, mode)]",
            "finds our rollout class",
        ),
        Text(
            f"{_EXTENSION}.update_weights_from_ipc",
            "self.remove_lora(VLLM_LORA_INT_ID)",
            "the average is sent before the student's adapter",
        ),
        Text(
            "verl.workers.rollout.vllm_rollout.vllm_rollout.ServerAdapter.update_weights",
            'kwargs={**kwargs, "use_shm": self.use_shm}',
            "passes our keyword on to the extension",
        ),
        Text(
            f"{_WORKER}.update_weights", "peft_config=peft_config, base_sync_done=True", "only then adapters are sent"
        ),
    ),
    "verl_ext/engine/causal_lm.py": (
        Text(f"{_FSDP}._build_model_optimizer", "module = self._build_module()", "before adapters and FSDP"),
        Text(
            f"{_FSDP}._build_model_optimizer", "signature(module.forward).parameters", "our model keeps the signature"
        ),
        Text("transformers.models.gemma2.modeling_gemma2", "self.config.final_logit_softcapping", "capped logits"),
        Text("transformers.models.granite.modeling_granite", "logits / self.config.logits_scaling", "divided logits"),
        Text("transformers.models.cohere.modeling_cohere", "logits * self.logit_scale", "multiplied logits"),
    ),
    "recipe/trd/training/agent_loop.py": (
        Text(f"{_OUTPUT}.as_dict", 'extra_fields.pop("teacher_ids"', "lists become tensors"),
        Text(f"{_OUTPUT}.as_dict", 'extra_fields.pop("teacher_logprobs"', "lists become tensors"),
        Text(f"{_AGENT_WORKER}._compute_score", "final_output.reward_score is None", "grades once"),
        Text(f"{_AGENT_WORKER}._compute_score", 'extra_fields["reward_extra_info"]', "acc"),
        Text(
            f"{_AGENT_WORKER}._agent_loop_postprocess", "final_output = outputs[-1]", "the last sample has the reward"
        ),
        Text(
            "verl.trainer.ppo.v1.utils.compute_advantage_for_multi_trajectories",
            "data.select_idxs(final_indices)",
            "the last sample of a session makes the advantage",
        ),
    ),
    "recipe/trd/training/trainer.py": (
        Text("verl.trainer.ppo.padding_utils", "is_padding=True", "padding has no record"),
    ),
    "recipe/trd/reports/run_folder.py": (
        Text(f"{_TRAINER}._save_checkpoint", "latest_checkpointed_iteration.txt", "resumes or not"),
    ),
    "configs/trd_trainer.yaml": (
        Text("verl.utils.tracking", "VERL_FILE_LOGGER_PATH", "metrics lie in the run folder"),
        Text("verl.utils.tracking", "TENSORBOARD_DIR", "metrics lie in the run folder"),
    ),
    "verl_ext/runtime/leftovers.py": (
        Text(f"{_TRANSFER}._init_buffer", 'f"verl_weights_', "buffers that a crash leaves behind"),
    ),
    "verl_ext/runtime/resources.py": (
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
    "verl_ext/cpu/vllm_adapters.py": (
        Text(
            "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU.add_lora_logits",
            "bgmv_shrink(x, lora_a_stacked, buffer, self.sampler_indices, scale)",
            "one position a request; if not, our replacement can go",
        ),
    ),
    "verl_ext/cpu/vllm_weights.py": (
        Text(
            "vllm.model_executor.layers.linear",
            "dispatch_cpu_unquantized_gemm(layer, remove_weight=True)",
            "looked up when a layer is loaded",
        ),
    ),
}
"""By the file of this repository that relies on them."""
