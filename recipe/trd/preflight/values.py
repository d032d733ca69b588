"""Values of verl's keys against their sense: one table of types and ranges for the keys that run scripts set."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class Kind:
    """What a value has to be."""

    holds: Callable[[Any], bool]
    text: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and float(value).is_integer()


def _or(*words: Any, kind: Kind) -> Kind:
    """One of the words, or of the kind."""
    names = ", ".join("null" if word is None else str(word) for word in words)
    return Kind(
        lambda value: any(value is word or value == word for word in words) or kind.holds(value),
        f"{names} or {kind.text}",
    )


POSITIVE = Kind(lambda value: _is_number(value) and value > 0, "a number above 0")
NOT_NEGATIVE = Kind(lambda value: _is_number(value) and value >= 0, "a number of at least 0")
FRACTION = Kind(lambda value: _is_number(value) and 0 <= value <= 1, "a number in [0, 1]")
SHARE = Kind(lambda value: _is_number(value) and 0 < value <= 1, "a number in (0, 1]")
COUNT = Kind(lambda value: _is_whole(value) and value >= 1, "a whole number of at least 1")
WHOLE = Kind(lambda value: _is_whole(value) and value >= 0, "a whole number of at least 0")
SWITCH = Kind(lambda value: isinstance(value, bool), "true or false")

ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
SERVER = "distillation.teacher_models.teacher_model.inference"

KINDS: dict[str, Kind] = {
    "data.train_batch_size": COUNT,
    "data.val_batch_size": _or(None, kind=COUNT),
    "data.max_prompt_length": COUNT,
    "data.max_response_length": COUNT,
    "data.train_max_samples": _or(-1, kind=COUNT),
    "data.val_max_samples": _or(-1, kind=COUNT),
    "data.dataloader_num_workers": WHOLE,
    "data.seed": _or(None, kind=WHOLE),
    "data.shuffle": SWITCH,
    "data.filter_overlong_prompts": SWITCH,
    f"{MODEL}.lora_rank": WHOLE,
    f"{MODEL}.lora_alpha": POSITIVE,
    f"{MODEL}.enable_gradient_checkpointing": SWITCH,
    f"{ACTOR}.optim.lr": NOT_NEGATIVE,
    f"{ACTOR}.optim.weight_decay": NOT_NEGATIVE,
    f"{ACTOR}.optim.lr_warmup_steps": _or(None, -1, kind=WHOLE),
    f"{ACTOR}.optim.lr_warmup_steps_ratio": FRACTION,
    f"{ACTOR}.optim.min_lr_ratio": _or(None, kind=FRACTION),
    f"{ACTOR}.optim.clip_grad": _or(None, kind=POSITIVE),
    f"{ACTOR}.grad_clip": _or(None, kind=POSITIVE),
    f"{ACTOR}.ppo_epochs": COUNT,
    f"{ACTOR}.ppo_mini_batch_size": COUNT,
    f"{ACTOR}.ppo_micro_batch_size_per_gpu": _or(None, kind=COUNT),
    f"{ACTOR}.ppo_max_token_len_per_gpu": COUNT,
    f"{ACTOR}.use_dynamic_bsz": SWITCH,
    f"{ACTOR}.clip_ratio_low": _or(None, kind=NOT_NEGATIVE),
    f"{ACTOR}.clip_ratio_high": _or(None, kind=NOT_NEGATIVE),
    f"{ACTOR}.clip_ratio_c": Kind(lambda value: _is_number(value) and value > 1, "a number above 1"),
    f"{ACTOR}.loss_scale_factor": _or(None, kind=POSITIVE),
    f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size": COUNT,
    f"{ROLLOUT}.n": COUNT,
    f"{ROLLOUT}.temperature": NOT_NEGATIVE,
    f"{ROLLOUT}.top_p": SHARE,
    f"{ROLLOUT}.top_k": _or(-1, kind=COUNT),
    f"{ROLLOUT}.gpu_memory_utilization": SHARE,
    f"{ROLLOUT}.tensor_model_parallel_size": COUNT,
    f"{ROLLOUT}.max_model_len": _or(None, kind=COUNT),
    f"{ROLLOUT}.max_num_seqs": COUNT,
    f"{ROLLOUT}.max_num_batched_tokens": COUNT,
    f"{ROLLOUT}.log_prob_max_token_len_per_gpu": COUNT,
    f"{ROLLOUT}.agent.num_workers": COUNT,
    f"{ROLLOUT}.val_kwargs.n": COUNT,
    f"{ROLLOUT}.val_kwargs.temperature": NOT_NEGATIVE,
    f"{ROLLOUT}.val_kwargs.top_p": SHARE,
    f"{ROLLOUT}.val_kwargs.top_k": _or(-1, kind=COUNT),
    f"{ROLLOUT}.val_kwargs.do_sample": SWITCH,
    f"{SERVER}.gpu_memory_utilization": SHARE,
    f"{SERVER}.tensor_model_parallel_size": COUNT,
    f"{SERVER}.max_model_len": _or(None, kind=COUNT),
    f"{SERVER}.max_num_seqs": COUNT,
    "trainer.total_epochs": COUNT,
    "trainer.total_training_steps": _or(None, kind=COUNT),
    "trainer.save_freq": _or(-1, kind=COUNT),
    "trainer.test_freq": _or(-1, kind=COUNT),
    "trainer.nnodes": COUNT,
    "trainer.n_gpus_per_node": COUNT,
    "trainer.max_actor_ckpt_to_keep": _or(None, kind=COUNT),
    "trainer.log_val_generations": WHOLE,
    "trainer.val_before_train": SWITCH,
    "distillation.nnodes": COUNT,
    "distillation.n_gpus_per_node": COUNT,
    "reward.num_workers": COUNT,
}


def check(config: DictConfig) -> None:
    """Refuse the first value that cannot be meant.

    Args:
        config: composed.

    Raises:
        ValueError: the message names the key, its value and what it has to be.
    """
    for key, kind in KINDS.items():
        value = OmegaConf.select(config, key, default=kind)
        if value is not kind and not kind.holds(value):
            raise ValueError(f"{key}={'null' if value is None else value} must be {kind.text}")
    if config.trainer.resume_mode not in ("auto", "disable", "resume_path"):
        raise ValueError(f"trainer.resume_mode={config.trainer.resume_mode} must be auto, disable or resume_path")
    rollout = config.actor_rollout_ref.rollout
    if config.trainer.device == "cpu" and OmegaConf.select(rollout, "full_determinism"):
        raise ValueError(
            "actor_rollout_ref.rollout.full_determinism=True: the batch invariance of vLLM that it switches on needs "
            "CUDA; on a CPU set it to False, with actor_rollout_ref.actor.fsdp_config.full_determinism=True and "
            "actor_rollout_ref.rollout.max_num_seqs=1"
        )
