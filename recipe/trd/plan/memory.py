"""What a run asks of its GPUs, from its configuration and the shapes of its models.

Weights, gradients, optimiser states and caches are counted from the configuration; activations, logits and what CUDA
and vLLM keep for themselves are estimates, whose factors are the constants below.
"""

from dataclasses import dataclass, field

from omegaconf import DictConfig
from verl.utils.config import omega_conf_to_dataclass

from recipe.trd.config.schema import TrdConfig
from recipe.trd.config.teacher_plan import Holder, TeacherPlan
from recipe.trd.plan import architectures
from recipe.trd.plan.architectures import Architecture
from verl_ext.divergence.linear import CHUNK_BYTES, GRADIENT_BYTES
from verl_ext.runtime import resources

GIB = 2**30

CONTEXT_GIB = 1.5
"""CUDA contexts and communication buffers of the processes that share a GPU."""

VLLM_OVERHEAD_GIB = 2.5
"""What vLLM keeps of its share beside weights and cache: activations of a prefill, CUDA graphs."""

LOGITS_COPIES = 2
"""verl's own losses: the logits of a whole micro-batch and their gradient, in bfloat16. Those of this package work on
chunks of rows."""


@dataclass(frozen=True)
class Plan:
    """Lines for a person, and what stands against the run."""

    lines: list[str]
    problems: list[str]


@dataclass
class Gpu:
    """Memory of one GPU, GiB, by what holds it."""

    parts: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """GiB in all."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        """One line, largest part first."""
        parts = sorted(self.parts.items(), key=lambda item: -item[1])
        return f"{self.total:5.1f} GiB: " + ", ".join(f"{name} {gib:.1f}" for name, gib in parts if gib >= 0.05)


def _dtype_bytes(name: str | None) -> int:
    return 4 if name in ("fp32", "float32", None) else 2


def trainer_states(config: DictConfig, student: Architecture) -> dict[str, float]:
    """GiB on every GPU of the trainer for the model and what goes with each of its parameters, by name.

    Gradients exist in an update only. FSDP cuts everything into `num_gpus` parts; AdamW keeps two moments of each
    trained parameter, in the dtype of the parameter.
    """
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    num_gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
    shards = num_gpus if actor.fsdp_config.fsdp_size in (-1, None) else actor.fsdp_config.fsdp_size
    size = _dtype_bytes(actor.fsdp_config.model_dtype)
    lora = student.lora_parameters(model.lora_rank) if model.lora_rank else 0
    trained = lora or student.num_parameters
    parts = {
        "parameters": (student.num_parameters + lora) * size,
        "gradients": trained * size,
        "optimiser": 2 * trained * size,
    }
    plan = teacher_plan_of(config)
    if plan is not None and plan.keeps_average:
        parts["average"] = 4 * trained
    if actor.use_kl_loss or config.algorithm.use_kl_in_reward:
        # With LoRA the reference is the model without its adapter.
        parts["reference"] = 0 if lora else student.num_parameters * size
    return {name: count / shards / GIB for name, count in parts.items()}


def update_extras(config: DictConfig, student: Architecture) -> dict[str, float]:
    """GiB on every GPU of the trainer that exist in a forward and backward pass only: estimates."""
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    longest = config.data.max_prompt_length + config.data.max_response_length
    if actor.use_dynamic_bsz:
        tokens = max(actor.ppo_max_token_len_per_gpu, longest)
    else:
        tokens = (actor.ppo_micro_batch_size_per_gpu or 1) * longest
    tokens /= actor.ulysses_sequence_parallel_size
    inner = sum(inputs + outputs for inputs, outputs in student.linear_shapes)
    per_layer = 2 * tokens * inner
    saved = 2 * tokens * student.hidden_size
    # Two layers are gathered at a time, the next while one is computed; embedding and head stay.
    gathered = 2 * (2 * student.layer_parameters + student.embedding_parameters)
    parts = {
        "gathered weights": gathered,
        # Checkpointing keeps the input of every layer, and recomputes one layer at a time.
        "activations": student.num_layers * saved + per_layer
        if model.enable_gradient_checkpointing
        else student.num_layers * per_layer,
    }
    if config.trd.upstream:
        parts["logits"] = LOGITS_COPIES * 2 * tokens * student.vocab_size
    else:
        parts["logits"] = CHUNK_BYTES["cuda"] + GRADIENT_BYTES
        parts["gradient of the head"] = 4 * student.vocab_size * student.hidden_size
    if _holds_teacher(config):
        parts["teacher's pass"] = _teacher_pass(config, tokens)
    return {name: size / GIB for name, size in parts.items()}


def teacher_plan_of(config: DictConfig) -> TeacherPlan | None:
    """Who holds the teacher's weights in this run; None without a teacher."""
    trd: TrdConfig = omega_conf_to_dataclass(config.trd)
    return trd.teacher_plan


def _holds_teacher(config: DictConfig) -> bool:
    """Whether a teacher with weights of its own lies beside the student, and not the student or its LoRA-free base."""
    plan = teacher_plan_of(config)
    return plan is not None and plan.module is Holder.OWN


def _teacher_shard(config: DictConfig) -> float:
    """Bytes of that teacher on a GPU of the trainer."""
    engine = config.trd.teacher.engine
    num_gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
    return architectures.read(engine.path).num_parameters * _dtype_bytes(engine.dtype) / num_gpus


def _teacher_pass(config: DictConfig, tokens: float) -> float:
    """Bytes of its forward pass: two gathered layers, embedding, head, and one layer at work on the longest context."""
    engine = config.trd.teacher.engine
    teacher = architectures.read(engine.path)
    inner = sum(inputs + outputs for inputs, outputs in teacher.linear_shapes)
    longest = max(tokens, teacher_longest(config))
    gathered = 2 * teacher.layer_parameters + teacher.embedding_parameters
    return _dtype_bytes(engine.dtype) * (gathered + longest * inner)


@dataclass(frozen=True)
class Server:
    """A pool of vLLM servers of one model."""

    replicas: int
    tensor_parallel: int
    weights_gib: float
    cache_gib: float
    cache_tokens: int
    """Tokens whose keys and values one replica holds."""
    longest: int
    """Longest sequence of a request, tokens."""

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.replicas} x TP {self.tensor_parallel}, per GPU weights {self.weights_gib:.1f} and cache "
            f"{self.cache_gib:.1f} GiB; a replica holds {self.cache_tokens:,} tokens = "
            f"{self.cache_tokens / self.longest:.0f} sequences of {self.longest:,}"
        )


def server(
    rollout: DictConfig, shape: Architecture, *, name: str, num_gpus: int, longest: int, gpu_gib: float
) -> tuple[Server, list[str]]:
    """How a pool of GPUs serves a model.

    Args:
        rollout: verl's rollout or teacher-inference node.
        shape: of the model.
        name: for messages.
        num_gpus: size of the pool.
        longest: longest sequence of a request, tokens.
        gpu_gib: memory of a GPU, GiB.

    Returns:
        The servers, and why they cannot be.
    """
    tensor_parallel = rollout.tensor_model_parallel_size
    problems = []
    if num_gpus % tensor_parallel:
        problems.append(
            f"{name}: {num_gpus} GPUs cannot be cut into servers of tensor_model_parallel_size {tensor_parallel}"
        )
    if shape.num_heads % tensor_parallel:
        problems.append(f"{name}: {shape.num_heads} attention heads cannot be cut by {tensor_parallel}")
    weights = shape.num_parameters * _dtype_bytes(rollout.dtype) / tensor_parallel / GIB
    cache = rollout.gpu_memory_utilization * gpu_gib - weights - VLLM_OVERHEAD_GIB
    # Every GPU of a server holds the keys and values of its heads; fewer heads than GPUs are repeated.
    per_token = shape.kv_bytes_per_token / min(tensor_parallel, shape.num_kv_heads) / GIB
    tokens = max(0, int(cache / per_token))
    if tokens < longest:
        problems.append(
            f"{name}: after {weights:.1f} GiB of weights the cache of a server holds {tokens:,} tokens, a request has "
            f"up to {longest:,}: raise gpu_memory_utilization or tensor_model_parallel_size"
        )
    positions = rollout.max_model_len or shape.max_positions
    if longest > min(positions, shape.max_positions):
        problems.append(
            f"{name}: requests of {longest:,} tokens, but max_model_len is {positions:,} and the model was made for "
            f"{shape.max_positions:,}: lower the lengths of data"
        )
    return Server(num_gpus // tensor_parallel, tensor_parallel, weights, max(0.0, cache), tokens, longest), problems


def teacher_longest(config: DictConfig) -> int:
    """Longest request to the teacher's server, tokens; scoring generates one token beside what it scores."""
    plan = teacher_plan_of(config)
    assert plan is not None, "there is a teacher"
    return plan.longest.max_length + 1


def make(config: DictConfig, *, gpu_gib: float) -> Plan:
    """Plan of a run.

    Args:
        config: composed; `distillation` is filled in as the run would do it.
        gpu_gib: memory of a GPU, GiB.

    Raises:
        ValueError: the shape of a model is not known here.
        InstantiationException: a value of `trd` is not allowed.
    """
    trd: TrdConfig = omega_conf_to_dataclass(config.trd)
    if trd.teacher_plan is not None and trd.teacher_plan.is_self:
        config.distillation.teacher_models.teacher_model.model_path = config.actor_rollout_ref.model.path
    rollout = config.actor_rollout_ref.rollout
    num_gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
    student = architectures.read(config.actor_rollout_ref.model.path)
    longest = config.data.max_prompt_length + config.data.max_response_length
    served, problems = server(
        rollout, student, name="student's server", num_gpus=num_gpus, longest=longest, gpu_gib=gpu_gib
    )
    phases = student_phases(config, student, gpu_gib)
    problems += [
        f"student's GPUs: {phase} takes {gpu.total:.1f} of {gpu_gib:g} GiB: {remedy}"
        for (phase, gpu), remedy in zip(phases.items(), _REMEDIES, strict=True)
        if gpu.total > gpu_gib
    ]
    lines = [
        f"student  {config.actor_rollout_ref.model.path}, {student.num_parameters / 1e9:.2f}B parameters",
        f"  GPUs      {config.trainer.nnodes} x {config.trainer.n_gpus_per_node}, in turn for rollout and update",
        f"  server    {served}",
        *[f"  {phase:<9} {gpu}" for phase, gpu in phases.items()],
    ]
    used = num_gpus
    if trd.has_server:
        teacher_lines, teacher_problems, teacher_gpus = _teacher(config, gpu_gib)
        lines, problems, used = lines + teacher_lines, problems + teacher_problems, used + teacher_gpus
    config.distillation.enabled = trd.has_server
    lines += [f"in all     {used} GPUs, {resources.required(config)['CPU']:g} CPUs for Ray", _disk(config, student)]
    return Plan(lines, problems)


_REMEDIES = (
    "lower actor_rollout_ref.rollout.gpu_memory_utilization, or set actor_rollout_ref.actor.fsdp_config.param_offload "
    "and optimizer_offload",
    "lower actor_rollout_ref.actor.ppo_max_token_len_per_gpu, use more GPUs, or set "
    "actor_rollout_ref.actor.fsdp_config.optimizer_offload",
)


def student_phases(config: DictConfig, student: Architecture, gpu_gib: float) -> dict[str, Gpu]:
    """Memory of a GPU that trains and rolls out, in its two phases: `rollout` and `update`."""
    fsdp, rollout = config.actor_rollout_ref.actor.fsdp_config, config.actor_rollout_ref.rollout
    states = trainer_states(config, student)
    resident = {
        name: gib
        for name, gib in states.items()
        if name != "gradients"
        and not (fsdp.optimizer_offload and name == "optimiser")
        and not (fsdp.param_offload and name in ("parameters", "reference"))
    }
    context = {"CUDA": CONTEXT_GIB}
    if _holds_teacher(config):
        shard = {"teacher": _teacher_shard(config) / GIB}
        states |= shard
        resident |= {} if config.trd.teacher.engine.offload else shard
    servers = {"vLLM": rollout}
    if config.trd.shared_gpus:
        servers["teacher's vLLM"] = config.distillation.teacher_models.teacher_model.inference
    shares = {name: server.gpu_memory_utilization * gpu_gib for name, server in servers.items()}
    awake = {name: shares[name] for name, server in servers.items() if not _sleeps(server)}
    # Offloaded states come back for the update.
    update = context | states | update_extras(config, student) | awake
    return {"rollout": Gpu(context | resident | shares), "update": Gpu(update)}


def _sleeps(server: DictConfig) -> bool:
    """Whether a server gives its memory to the update."""
    return bool(server.enable_sleep_mode and server.free_cache_engine)


def _teacher(config: DictConfig, gpu_gib: float) -> tuple[list[str], list[str], int]:
    """Lines, problems and number of GPUs of the teacher's servers."""
    node = config.distillation.teacher_models.teacher_model
    pool = config.distillation
    num_gpus = pool.nnodes * pool.n_gpus_per_node
    shape = architectures.read(node.model_path)
    served, problems = server(
        node.inference,
        shape,
        name="teacher's server",
        num_gpus=num_gpus,
        longest=teacher_longest(config),
        gpu_gib=gpu_gib,
    )
    lines = [f"teacher  {node.model_path}, {shape.num_parameters / 1e9:.2f}B parameters"]
    if config.trd.shared_gpus:
        return [*lines, "  GPUs      the student's", f"  server    {served}"], problems, 0
    memory = Gpu({"vLLM": node.inference.gpu_memory_utilization * gpu_gib, "CUDA": CONTEXT_GIB})
    if memory.total > gpu_gib:
        problems.append(f"teacher's GPUs: {memory}: lower its gpu_memory_utilization")
    lines += [
        f"  GPUs      {pool.nnodes} x {pool.n_gpus_per_node}, its own",
        f"  server    {served}",
        f"  always    {memory}",
    ]
    return lines, problems, num_gpus


def _disk(config: DictConfig, student: Architecture) -> str:
    """A checkpoint holds the parameters and AdamW's two moments, in the dtype of the trainer."""
    size = _dtype_bytes(config.actor_rollout_ref.actor.fsdp_config.model_dtype)
    trained = student.lora_parameters(config.actor_rollout_ref.model.lora_rank or 0) or student.num_parameters
    gib = (student.num_parameters * size + 2 * trained * size) / GIB
    kept = config.trainer.max_actor_ckpt_to_keep
    return f"disk       {gib:.0f} GiB a checkpoint, {'all are' if kept is None else f'the last {kept} are'} kept"
