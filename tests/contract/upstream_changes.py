"""Changes of verl and vLLM that are under way and concern this repository, and what would make an override unnecessary.

`make docs` writes them into docs/upstream.md beside the entries of upstream.py. Numbers are those of issues and pull
requests of verl, unless vllm stands before them, as of autumn 2026; none of them is in verl 0.9.1.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """A change that a release may bring."""

    name: str
    refs: str
    what: str
    """What changes upstream."""
    then: str
    """What that means here."""
    touches: tuple[str, ...]
    """Beginnings of dotted paths: entries below them are affected."""


_V1 = "verl.trainer.ppo.v1"
_SERVER = "verl.workers.rollout.vllm_rollout.vllm_async_server"
_ENGINE = "verl.workers.engine.fsdp.transformer_impl"

CHANGES = (
    Change(
        "NeoProto",
        "#6988, #6999 merged on branch `neo`, #7000",
        "removes TransferQueue and the v1 trainer from the default path; `trainer.use_v1=false` ends at once",
        "breaks trainer, task runner and agent loop: records of samples come out of TransferQueue, and the classes "
        "that they extend are those of v1. Engine, losses and servers stay. This is the largest risk",
        (_V1, "verl.trainer.main_ppo.TaskRunnerV1", "verl.trainer.ppo.padding_utils", "transfer_queue"),
    ),
    Change(
        "Scoring in the trainer",
        "#7998",
        "moves the teacher's scoring from the agent loop into the training step (`distillation.compute_at_train_time`)",
        "ends the need to override `_compute_teacher_logprobs`; the rewrite still needs the agent loop, and the "
        "samples that it scores with the rewrite must not be scored again",
        (f"{_V1}.agent_loop_tq.AgentLoopWorkerTQ._compute_teacher_logprobs", "verl.experimental.teacher_loop"),
    ),
    Change(
        "Tail bucket",
        "#7855, #7856",
        "adds `forward_kl_topk_tail` with `tail_mass_eps`, the formula of our `tail=bucket`, and lets losses.py choose "
        "by `loss_mode`",
        "a second implementation to compare with; the registration of `loss_mode=trd` may have to change. Reverse KL, "
        "JSD and the full vocabulary still need our loss",
        ("verl.trainer.distillation.losses",),
    ),
    Change(
        "Exact divergence from hidden states",
        "#6194",
        "computes a KL over the whole vocabulary from hidden states, without a [tokens, vocabulary] tensor",
        "would end most of `verl_ext/engine`, if it takes two models of different width and returns hidden states",
        (f"{_ENGINE}.FSDPEngineWithLMHead.forward_step", f"{_ENGINE}.FSDPEngineWithLMHead._build_module"),
    ),
    Change(
        "Teachers in the trainer",
        "#7058",
        "runs several teachers on the trainer's GPUs, with changed configuration",
        "would end `FrozenEngine` and `build_teacher` for an external teacher; the average of the student's weights "
        "and its adapters still need ours",
        (f"{_ENGINE}.FSDPEngineWithLMHead._build_optimizer", "verl.workers.config.HFModelConfig"),
    ),
    Change(
        "Log-probs of given tokens",
        "#7806, vllm#54335, vllm#56860",
        "lets a server return log-probs of tokens that the request names",
        "would allow the student's top-k as support with a teacher's server, and end a part of `TopKServer.generate`",
        (f"{_SERVER}.vLLMHttpServer.generate", "vllm.logprobs.FlatLogprobs"),
    ),
    Change(
        "Self-teachers",
        "#6833, #6909",
        "adds OPSD: a teacher that is the student under a privileged prompt",
        "a second implementation to compare with; nothing here has to change",
        (),
    ),
)

GOES_WHEN = {
    "recipe/trd/training/task_runner.py": "verl takes a trainer's class and a list of processes to watch by name.",
    "recipe/trd/reports/reporting.py": "verl calls hooks at the start, after each step and after a validation.",
    "recipe/trd/training/trainer.py": "verl takes the worker's class from the configuration, skips the pass for old "
    "log-probs where no loss reads them, and has hooks for metrics and dumps.",
    "recipe/trd/training/shared_gpus.py": "verl puts a teacher into a resource pool by name, and its servers sleep "
    "with the student's.",
    "recipe/trd/training/worker.py": "verl builds a loss from a name in the configuration and lets it add fields to a "
    "batch.",
    "verl_ext/engine/worker.py": "verl takes the engine's class by name and saves what an engine adds to a checkpoint.",
    "verl_ext/engine/distillation.py": "verl's engine passes hidden states and the output head to a loss, also those "
    "of a second model.",
    "recipe/trd/training/checkpointing.py": "verl writes a checkpoint aside and renames it when it is whole",
    "recipe/trd/training/agent_loop.py": "verl has a hook between rollout and reward, and takes tensors of a sample by "
    "name.",
    "verl_ext/server/topk_server.py": "verl's server returns top-k log-probs of generated and of given tokens, and "
    "chooses an adapter by request.",
    "verl_ext/server/lora.py": "verl sends more than one adapter with an update of weights.",
    "verl_ext/cpu/platform.py": "verl has a platform for machines without an accelerator.",
    "verl_ext/cpu/training_worker.py": "verl composes one gloo backend for the device `cpu`.",
    "verl_ext/cpu/weight_transfer.py": "verl's sender of weights waits with a limit.",
    "verl_ext/cpu/vllm_weights.py": "vLLM's CPU kernels keep the weight that they pack.",
    "verl_ext/cpu/vllm_adapters.py": "vLLM's CPU operators take prompt log-probs of several requests beside adapters.",
}
"""By the file of this repository that overrides, wraps or replaces: what verl or vLLM would have to offer instead."""
