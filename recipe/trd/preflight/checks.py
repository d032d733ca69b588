"""Everything about a run that can be known to be wrong before a process is started. One clear line for each."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config

from recipe.trd.config.objective import TOP_K_SUPPORTS
from recipe.trd.config.schema import TrdConfig
from recipe.trd.oprd import bridge
from recipe.trd.preflight import student_server, thinking
from recipe.trd.rewards import code_reward, sandbox
from recipe.trd.rewrite import prompts
from verl_ext import plugin


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What a dataclass refuses is the error, not Hydra's report of it."""
    try:
        yield
    except InstantiationException as error:
        raise ValueError(str(error.__cause__ or error)) from error


@_plain_errors()
def check(config: DictConfig) -> TrdConfig:
    """Check configuration, models, tokenisers, data and lengths of a run.

    Args:
        config: the composed configuration; `distillation.enabled` is filled in where it is left to the method.

    Returns:
        The `trd` node as dataclasses.

    Raises:
        ValueError: a setting cannot work; the message says what to change.
        OSError: a file that the configuration names cannot be read.
        AssertionError: verl's own check of its keys failed.
    """
    _check_process(config)
    if config.trd.teacher.weights in ("frozen", "ema", "live"):
        config.distillation.teacher_models.teacher_model.model_path = config.actor_rollout_ref.model.path
    trd: TrdConfig = omega_conf_to_dataclass(config.trd)
    # Importing the objective registers `loss_mode=trd`, which verl's dataclasses look up.
    from recipe.trd.training import loss  # noqa: F401

    if config.distillation.enabled is None:
        config.distillation.enabled = trd.has_server
    if not trd.upstream:
        _check_objective(config, trd)
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    if config.distillation.enabled:
        omega_conf_to_dataclass(config.distillation)
    _check_batches(config)
    student = _model("actor_rollout_ref.model.path", config.actor_rollout_ref.model.path)
    if (template := config.actor_rollout_ref.model.custom_chat_template) is not None:
        student.tokenizer.chat_template = template
    thinking.set_for_student(config, trd, student.tokenizer)
    _check_lengths(config, trd, student)
    _check_data(config)
    _check_reward(config)
    if trd.needs_reference:
        _check_references(config, trd)
    if trd.teacher.weights != "none":
        _check_teachers(config, trd, student)
    return trd


_SERVER_PATH = "distillation.teacher_models.teacher_model.model_path"


def _check_process(config: DictConfig) -> None:
    if not plugin.is_loaded():
        raise ValueError(
            "verl did not load the plug-in verl_ext: install this package (pip install -e .) and leave "
            "VERL_USE_EXTERNAL_PLUGINS unset or at auto"
        )
    if (config.trainer.device == "cpu") != plugin.is_cpu_platform():
        raise ValueError(
            f"trainer.device={config.trainer.device} with VERL_PLATFORM={os.environ.get('VERL_PLATFORM', '')!r}: "
            "cluster=cpu needs VERL_PLATFORM=cpu in the environment, and only that"
        )
    unset = sorted(str(key) for key in OmegaConf.missing_keys(config) if not str(key).startswith("reward.reward_model"))
    if unset:
        raise ValueError(f"not set: {', '.join(unset)}; choose method=, model=, data= and cluster=, or set the keys")


def _check_objective(config: DictConfig, trd: TrdConfig) -> None:
    """Settings of verl that would do nothing, or the wrong thing, beside this package's objective."""
    actor, loss = "actor_rollout_ref.actor", "distillation.distillation_loss"
    wanted = {
        "trainer.use_v1": True,
        "trainer.v1.trainer_mode": "trd",
        "algorithm.use_kl_in_reward": False,
        "distillation.enabled": trd.has_server,
        "actor_rollout_ref.model.use_fused_kernels": False,
        "actor_rollout_ref.rollout.agent.agent_loop_manager_class": "recipe.trd.training.agent_loop.TrdAgentLoopManager",
        "actor_rollout_ref.rollout.calculate_log_probs": False,
        f"{actor}.use_kl_loss": False,
        f"{actor}.entropy_coeff": 0,
        f"{actor}.fsdp_config.pad_to_length": False,
        f"{loss}.loss_mode": "trd",
        f"{loss}.topk": trd.objective.top_k,
        f"{loss}.use_task_rewards": False,
        f"{loss}.use_policy_gradient": False,
    }
    for key, value in wanted.items():
        if (given := OmegaConf.select(config, key)) != value:
            raise ValueError(f"{key}={given} does not go with method {trd.method}, which needs {value}; leave it out")
    if trd.teacher.weights == "ema" and config.actor_rollout_ref.actor.strategy != "fsdp2":
        raise ValueError(f"trd.teacher.weights=ema needs {actor}.strategy=fsdp2, whose shards can be exchanged")
    if trd.teacher.weights == "frozen" and config.actor_rollout_ref.model.lora_adapter_path is not None:
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
    mode = config.actor_rollout_ref.actor.loss_agg_mode
    if mode == "seq-mean-token-sum-norm" and config.actor_rollout_ref.actor.loss_scale_factor is None:
        raise ValueError(
            f"{actor}.loss_agg_mode={mode} needs {actor}.loss_scale_factor: without it the loss would depend on the "
            "longest response of a micro-batch"
        )
    if config.actor_rollout_ref.actor.strategy not in ("fsdp", "fsdp2"):
        raise ValueError(
            f"{actor}.strategy={config.actor_rollout_ref.actor.strategy}: method {trd.method} runs on fsdp and fsdp2"
        )


def _check_batches(config: DictConfig) -> None:
    """verl cuts batches into equal parts, and finds out in the first update when that does not work."""
    actor, num_gpus = config.actor_rollout_ref.actor, config.trainer.n_gpus_per_node * config.trainer.nnodes
    if actor.use_dynamic_bsz:
        return
    rows = actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
    part = num_gpus * (actor.ppo_micro_batch_size_per_gpu or 1)
    if rows % part:
        raise ValueError(
            f"ppo_mini_batch_size * rollout.n = {rows} samples cannot be cut into micro-batches "
            f"of {actor.ppo_micro_batch_size_per_gpu} on {num_gpus} devices: change "
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu, or set actor_rollout_ref.actor.use_dynamic_bsz=True"
        )


def _teacher_paths(config: DictConfig, trd: TrdConfig) -> dict[str, str | None]:
    """Every model that teaches, by the key that names it; the one of scorer `engine` last."""
    paths = {_SERVER_PATH: OmegaConf.select(config, _SERVER_PATH)} if trd.has_server else {}
    if trd.teacher.scorer == "engine" and not trd.upstream and not trd.is_self:
        paths["trd.teacher.engine.path"] = trd.teacher.engine.path
    return paths


def _check_teachers(config: DictConfig, trd: TrdConfig, student: "_Model") -> None:
    teachers = []
    for key, path in _teacher_paths(config, trd).items():
        teachers.append(_model(key, path))
        _check_same_tokens(student, teachers[-1], eos_remap=trd.teacher.eos_remap)
        _check_heads(trd, student, teachers[-1])
    if trd.has_server:
        _check_server(config, trd, teachers[0])
    if trd.teacher.scorer == "engine" and not trd.upstream:
        _check_engine(config, trd, student, teachers[-1] if teachers else student)
    # The contexts are made by the model of the server, where there is one.
    speaker = student if trd.is_self else teachers[0]
    template_kwargs = config.data.apply_chat_template_kwargs or {}
    thinking.check_teacher(trd, template_kwargs, student=student.tokenizer, teacher=speaker.tokenizer)


class _Model:
    """Configuration and tokenizer of a model that the run will load."""

    def __init__(self, path: str, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.path, self.config, self.tokenizer = path, config, tokenizer


def _model(key: str, path: str | None) -> _Model:
    if not path:
        raise ValueError(f"{key} is not set; choose model=... or set it")
    try:
        return _Model(path, AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path))
    except (OSError, ValueError) as error:
        hint = "" if Path(path).exists() else " (no such folder here, and no such model could be had from the hub)"
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{key}={path}: no model can be read there{hint}: {reason}") from error


def _check_same_tokens(student: _Model, teacher: _Model, *, eos_remap: bool) -> None:
    """A response has to be the same token ids for both, and the ids have to mean the same."""
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if ours != theirs:
        different = next(token for token in {**ours, **theirs} if ours.get(token) != theirs.get(token))
        raise ValueError(
            f"student {student.path} and teacher {teacher.path} have different tokenisers (for one, {different!r} is "
            f"{ours.get(different)} for the student and {theirs.get(different)} for the teacher); distillation on "
            "token ids needs one vocabulary: choose a teacher of the student's family"
        )
    if student.tokenizer.eos_token_id != teacher.tokenizer.eos_token_id and not eos_remap:
        raise ValueError(
            f"student and teacher end a turn differently ({student.tokenizer.eos_token!r} and "
            f"{teacher.tokenizer.eos_token!r}); choose checkpoints of one kind (base or instruct), or set "
            "trd.teacher.eos_remap=True, by which the teacher's token counts as the student's"
        )


def _check_heads(trd: TrdConfig, student: _Model, teacher: _Model) -> None:
    """Heads of different size agree on all tokens: what one has more is padding."""
    ours, theirs = _num_rows(student), _num_rows(teacher)
    num_tokens = len(student.tokenizer)
    if ours != theirs and min(ours, theirs) < num_tokens:
        raise ValueError(
            f"the output heads of student and teacher have {ours} and {theirs} rows for a tokenizer of {num_tokens} "
            "tokens: the smaller one lacks tokens; choose checkpoints of one family"
        )
    for term in trd.objective.terms:
        if term.support in TOP_K_SUPPORTS and term.top_k > min(ours, theirs):
            raise ValueError(
                f"trd.objective.top_k={term.top_k} exceeds the vocabulary of {min(ours, theirs)}; lower it"
            )


def _num_rows(model: _Model) -> int:
    return int(model.config.get_text_config().vocab_size)


def _check_engine(config: DictConfig, trd: TrdConfig, student: _Model, teacher: _Model) -> None:
    """The teacher beside the student: context lengths, micro-batches, and layers that can be compared."""
    longest = max(_teacher_lengths(config, trd).values())
    if longest > _context_limit(teacher):
        raise ValueError(
            f"the teacher's context and the response need {longest} tokens, and {teacher.path} has "
            f"{_context_limit(teacher)}: lower data.max_prompt_length, data.max_response_length or "
            "trd.rewrite.max_prompt_length"
        )
    actor = config.actor_rollout_ref.actor
    sequence_parallel = actor.fsdp_config.ulysses_sequence_parallel_size
    if actor.use_dynamic_bsz and actor.ppo_max_token_len_per_gpu * sequence_parallel < longest:
        raise ValueError(
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={actor.ppo_max_token_len_per_gpu} is less than the "
            f"{longest} tokens of the teacher's longest sequence, which goes through the same micro-batch; raise it"
        )
    if trd.objective.hidden_term is None:
        return
    if trd.objective.hidden.bridge is not None:
        bridge.check(trd.objective.hidden.bridge, student=student.config, teacher=teacher.config)
        return
    shapes = [
        (model.config.get_text_config().num_hidden_layers, model.config.get_text_config().hidden_size)
        for model in (student, teacher)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"hidden_mse compares layer by layer, but the student has {shapes[0][0]} layers of {shapes[0][1]} and the "
            f"teacher {shapes[1][0]} of {shapes[1][1]}: choose method=oprd_bridge, or a pair from one initialisation"
        )


def _context_limit(model: _Model) -> int:
    return int(getattr(model.config, "max_position_embeddings", None) or 2**31)


def _check_lengths(config: DictConfig, trd: TrdConfig, student: _Model) -> None:
    needed = config.data.max_prompt_length + config.data.max_response_length
    limit = config.actor_rollout_ref.rollout.max_model_len or _context_limit(student)
    if trd.asks_student:
        student_server.prepare(config, trd, needed=_teacher_lengths(config, trd), limit=_context_limit(student))
    if needed > limit:
        raise ValueError(
            f"data.max_prompt_length + data.max_response_length = {needed} tokens do not fit into {limit}: raise "
            "actor_rollout_ref.rollout.max_model_len (at most the model's max_position_embeddings "
            f"{_context_limit(student)}) or lower the lengths"
        )
    if trd.trajectory == "y_r" or trd.teacher.context == "refine":
        prompts.template_path(trd.rewrite.template)
    if trd.needs_reference:
        # Also of a refine context: the y_o that stands in for a rejected rewrite is scored under the privileged one.
        prompts.template_path(trd.teacher.template)
    if trd.trajectory == "y_r" and config.actor_rollout_ref.rollout.multi_turn.enable:
        raise ValueError(
            "actor_rollout_ref.rollout.multi_turn.enable=True with trd.trajectory=y_r: a rewrite replaces one "
            "response, conversations with tools are not rewritten; set it to False or choose method=opd or grpo"
        )


def _teacher_lengths(config: DictConfig, trd: TrdConfig) -> dict[str, int]:
    """Longest sequence under every context that the teacher may see, tokens."""
    longest = {"the vanilla context": config.data.max_prompt_length + config.data.max_response_length}
    if trd.trajectory == "y_r":
        longest["the refine context"] = trd.rewrite.max_prompt_length + trd.rewrite.max_response_length
    elif trd.teacher.context == "refine":
        longest["the refine context"] = trd.rewrite.max_prompt_length + config.data.max_response_length
    if trd.needs_reference:
        longest["the privileged context"] = trd.teacher.max_prompt_length + config.data.max_response_length
    return longest


def _check_server(config: DictConfig, trd: TrdConfig, teacher: _Model) -> None:
    inference = config.distillation.teacher_models.teacher_model.inference
    limit = inference.max_model_len or _context_limit(teacher)
    name, longest = max(_teacher_lengths(config, trd).items(), key=lambda item: item[1])
    # A scoring request generates one token beside what it scores.
    if longest + 1 > limit:
        raise ValueError(
            f"{name} needs {longest + 1} tokens on the teacher's server, which has {limit}: raise "
            "distillation.teacher_models.teacher_model.inference.max_model_len (at most the teacher's "
            f"max_position_embeddings {_context_limit(teacher)}), or lower trd.rewrite.max_prompt_length or the "
            "lengths of data"
        )
    if not trd.upstream and inference.logprobs_mode != "raw_logprobs":
        raise ValueError(
            "distillation.teacher_models.teacher_model.inference.logprobs_mode must be raw_logprobs: any other is the "
            "distribution after sampling parameters, not the teacher's own"
        )


def _files(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _check_data(config: DictConfig) -> None:
    """Files are there and hold the columns that the run reads."""
    wanted = {config.data.prompt_key, config.data.reward_fn_key, "reward_model"}
    for key in ("train_files", "val_files"):
        for file in _files(config.data[key]):
            path = Path(file).expanduser()
            if not path.is_file():
                raise ValueError(f"data.{key}={file}: no such file; prepare the data first, or set data.{key}")
            columns = set(_columns(path))
            if not wanted <= columns:
                raise ValueError(
                    f"data.{key}={file} lacks the columns {sorted(wanted - columns)} (it has {sorted(columns)}); "
                    "verl's format has prompt (chat messages), data_source and reward_model.ground_truth"
                )


def _check_reward(config: DictConfig) -> None:
    """Programs run here, where the reward is whether they do."""
    function = config.reward.custom_reward_function
    if function.path not in ("pkg://recipe.trd.rewards.code_reward", code_reward.__file__):
        return
    try:
        code_reward.check(**dict(function.reward_kwargs))
    except (TypeError, sandbox.SandboxError) as error:
        raise ValueError(f"reward.custom_reward_function.path={function.path}: {error}") from error


def _check_references(config: DictConfig, trd: TrdConfig) -> None:
    """The training rows have a place for the reference solution; rows that leave it empty are counted in the run."""
    column = trd.reference_key.split(".")[0]
    for file in _files(config.data.train_files):
        if column not in _columns(Path(file).expanduser()):
            raise ValueError(
                f"method {trd.method} shows the teacher a reference solution, and data.train_files={file} has no "
                f"column {column} (trd.reference_key={trd.reference_key}); prepare data with solutions, or set the key"
            )


def _columns(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return parquet.read_schema(path).names
    return list(pd.read_json(path, lines=path.suffix == ".jsonl", nrows=1 if path.suffix == ".jsonl" else None).columns)
