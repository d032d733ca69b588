"""Everything about a run that can be known to be wrong before a process is started. One clear line for each."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config

from recipe.trd.config.axes import Weights
from recipe.trd.config.schema import TrdConfig
from recipe.trd.preflight import data_files, model_pair, sequence_lengths, student_server, thinking, verl_keys
from recipe.trd.preflight.model_pair import RunModel
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
    """Check configuration, models, tokenizers, data and lengths of a run.

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
    _fill_in_self_teacher(config)
    trd: TrdConfig = omega_conf_to_dataclass(config.trd)
    # Importing the objective registers `loss_mode=trd`, which verl's dataclasses look up.
    from recipe.trd.training import loss  # noqa: F401

    if config.distillation.enabled is None:
        config.distillation.enabled = trd.has_server
    if not trd.upstream:
        verl_keys.check_objective(config, trd)
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    if config.distillation.enabled:
        omega_conf_to_dataclass(config.distillation)
    verl_keys.check_batches(config)
    student = model_pair.read_student(config)
    thinking.set_for_student(config, trd, student.tokenizer)
    if trd.teacher_plan is not None and trd.teacher_plan.asks_student:
        student_server.prepare(config, trd, limit=student.max_positions)
    sequence_lengths.check_student(config, student)
    sequence_lengths.check_templates(config, trd)
    data_files.check_columns(config)
    data_files.check_reward(config)
    if trd.teacher_plan is not None and trd.teacher_plan.needs_reference:
        data_files.check_references(config, trd)
    if trd.teacher_plan is not None:
        _check_teachers(config, trd, student)
    return trd


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


def _fill_in_self_teacher(config: DictConfig) -> None:
    """The student is the model of a self-teacher, also where other keys are read from it."""
    weights = OmegaConf.select(config, "trd.teacher.weights")
    if weights in (Weights.FROZEN, Weights.EMA, Weights.LIVE):
        config.distillation.teacher_models.teacher_model.model_path = config.actor_rollout_ref.model.path


def _check_teachers(config: DictConfig, trd: TrdConfig, student: RunModel) -> None:
    plan = trd.teacher_plan
    assert plan is not None, "there is a teacher"
    teachers = model_pair.read_teachers(config, trd, student)
    if plan.has_server:
        sequence_lengths.check_server(config, trd, plan, teachers[0])
    if plan.module is not None:
        module = teachers[-1] if teachers else student
        sequence_lengths.check_engine(config, plan, module)
        model_pair.check_layers(trd, student, module)
    # The contexts are made by the model of the server, where there is one.
    author = student if plan.is_self else teachers[0]
    template_kwargs = config.data.apply_chat_template_kwargs or {}
    thinking.check_teacher(trd, template_kwargs, student=student.tokenizer, teacher=author.tokenizer)
