"""Everything about a run that can be known to be wrong before a process is started. One clear line for each."""

import difflib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config

from recipe.trd.config.axes import Weights
from recipe.trd.config.schema import TrdConfig
from recipe.trd.preflight import (
    attention,
    batches,
    context_room,
    data_files,
    dataset_content,
    gpu_shares,
    model_files,
    model_pair,
    reward_call,
    sequence_lengths,
    student_server,
    surroundings,
    thinking,
    unused_keys,
    values,
    verl_keys,
)
from recipe.trd.preflight.dataset_content import Sample
from recipe.trd.preflight.model_pair import RunModel
from verl_ext import plugin


@contextmanager
def _plain_errors(config: DictConfig) -> Iterator[None]:
    """What a dataclass refuses is the error, not Hydra's report of it."""
    try:
        yield
    except InstantiationException as error:
        raise ValueError(_unknown_key(config, str(error)) or str(error.__cause__ or error)) from error


def _unknown_key(config: DictConfig, report: str) -> str | None:
    """A line about a key that the node does not have, where that is what Hydra reports."""
    name = re.search(r"unexpected keyword argument '(\w+)'", report)
    node = re.search(r"full_key: ([\w.]+)", report)
    if name is None or node is None:
        return None
    known = [str(key) for key in OmegaConf.select(config, node[1]) if str(key) not in (name[1], "_target_")]
    nearest = difflib.get_close_matches(name[1], known, n=1) or known
    return f"{node[1]}.{name[1]} is no key; {node[1]} has {', '.join(nearest)}: leave it out, or mend its name"


@dataclass
class Setup:
    """What the checks look at; models are read when the first check asks for them."""

    config: DictConfig
    trd: TrdConfig

    @cached_property
    def student(self) -> RunModel:
        """The student, with the chat template of the run."""
        return model_pair.read_student(self.config)

    @cached_property
    def teachers(self) -> list[RunModel]:
        """Models other than the student that teach."""
        return model_pair.read_teachers(self.config, self.trd, self.student) if self.trd.teacher is not None else []

    @cached_property
    def train(self) -> list[Sample]:
        """Training samples, read once."""
        return dataset_content.read(self.config, "train_files")

    @cached_property
    def val(self) -> list[Sample]:
        """Validation samples, read once."""
        return dataset_content.read(self.config, "val_files")

    @property
    def author(self) -> RunModel:
        """The model whose chat template the teacher's contexts are made with: that of its server, where it has one."""
        plan = self.trd.teacher_plan
        return self.student if plan is None or plan.is_self else self.teachers[0]


def _verls_own(setup: Setup) -> None:
    config = setup.config
    # Importing the objective registers `loss_mode=trd`, which verl's dataclasses look up.
    from recipe.trd.training import loss  # noqa: F401

    with _plain_errors(config):
        validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
        if config.distillation.enabled:
            omega_conf_to_dataclass(config.distillation)


def _objective(setup: Setup) -> None:
    if not setup.trd.upstream:
        verl_keys.check_objective(setup.config, setup.trd)


def _student_server(setup: Setup) -> None:
    student_server.check_floor(setup.config, setup.trd, limit=setup.student.max_positions)
    if setup.trd.teacher_plan is not None and setup.trd.teacher_plan.asks_student:
        student_server.prepare(setup.config, setup.trd, limit=setup.student.max_positions)


def _columns(setup: Setup) -> None:
    data_files.check_columns(setup.config)
    if setup.trd.teacher_plan is not None and setup.trd.teacher_plan.needs_reference:
        data_files.check_references(setup.config, setup.trd)


def _teachers(setup: Setup) -> None:
    plan = setup.trd.teacher_plan
    if plan is None:
        return
    if plan.has_server:
        sequence_lengths.check_server(setup.config, setup.trd, plan, setup.teachers[0])
    if plan.module is not None:
        module = setup.teachers[-1] if setup.teachers else setup.student
        sequence_lengths.check_engine(setup.config, plan, module)
        model_pair.check_layers(setup.trd, setup.student, module)


def _weights(setup: Setup) -> None:
    model_files.check_adapter(setup.config)
    for model in (setup.student, *setup.teachers):
        model_files.check_weights(model.key, model.path)


def _template_kwargs(setup: Setup) -> dict[str, Any]:
    return dict(setup.config.data.apply_chat_template_kwargs or {})


def _openings(setup: Setup) -> None:
    kwargs = _template_kwargs(setup)
    model_files.check_opening(
        setup.student, kwargs, remedy="set actor_rollout_ref.model.custom_chat_template to one that does"
    )
    for teacher in setup.teachers:
        model_files.check_opening(teacher, kwargs, remedy="mend the template in its folder")


def _thinking(setup: Setup) -> None:
    if setup.trd.teacher_plan is not None:
        tokenizers = {"student": setup.student.tokenizer, "teacher": setup.author.tokenizer}
        thinking.check_teacher(setup.trd, _template_kwargs(setup), **tokenizers)


def _contexts(setup: Setup) -> None:
    if setup.trd.teacher_plan is not None:
        models = {"student": setup.student, "author": setup.author}
        context_room.check(setup.config, setup.trd, **models, train=setup.train)


def _samples(setup: Setup) -> None:
    data = {"train": setup.train, "val": setup.val}
    dataset_content.check(setup.config, setup.trd, student=setup.student, **data)


CHECKS: dict[str, Callable[[Setup], None]] = {
    "unused_keys": lambda setup: unused_keys.check(setup.config, setup.trd),
    "values": lambda setup: values.check(setup.config),
    "attention": lambda setup: attention.choose(setup.config),
    "objective": _objective,
    "agent_loop": lambda setup: verl_keys.check_agent_loop(setup.config, setup.trd),
    "sampling": lambda setup: verl_keys.check_sampling(setup.config, setup.trd),
    "verl": _verls_own,
    "batches": lambda setup: batches.check_cuts(setup.config),
    "groups": lambda setup: batches.check_groups(setup.config, setup.trd),
    "loggers": lambda setup: surroundings.check_loggers(setup.config),
    "run_folder": lambda setup: surroundings.check_run_folder(setup.config),
    "checkpoint": lambda setup: surroundings.check_resume(setup.config),
    "sockets": lambda setup: surroundings.shorten_socket_paths(),
    "shared_gpus": lambda setup: gpu_shares.check(setup.config),
    "devices": lambda setup: surroundings.check_devices(setup.config),
    "student_thinking": lambda setup: thinking.set_for_student(setup.config, setup.trd, setup.student.tokenizer),
    "student_server": _student_server,
    "lengths": lambda setup: sequence_lengths.check_student(setup.config, setup.student),
    "templates": lambda setup: sequence_lengths.check_templates(setup.config, setup.trd),
    "columns": _columns,
    "code_reward": lambda setup: data_files.check_reward(setup.config),
    "teachers": _teachers,
    "servers": lambda setup: verl_keys.check_servers(setup.config, setup.trd),
    "weights": _weights,
    "chat_templates": _openings,
    "thinking": _thinking,
    "samples": _samples,
    "contexts": _contexts,
    "reward": lambda setup: reward_call.check(setup.config, setup.train[0].columns),
    "disk": lambda setup: surroundings.check_disk(setup.config),
}
"""Every check by the name that `trd.preflight.skip` knows it by, in order."""

FILL_IN = ("attention", "student_thinking", "student_server")
"""Checks that also fill in what the run needs, so that they cannot be left out."""

REFUSALS = (ValueError, OSError, AssertionError, NotImplementedError, OmegaConfBaseException)
"""What a check raises where a run cannot work."""


def refusal(error: BaseException) -> str:
    """What a check raised, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def read(config: DictConfig) -> Setup:
    """The configuration as dataclasses, where it is complete and means something.

    Args:
        config: composed; what is left to the method is filled in.

    Raises:
        ValueError: it is not; the message says what to change.
    """
    _check_process(config)
    if "values" not in config.trd.preflight.skip:
        # Before the dataclasses, whose messages would name keys that only follow these.
        values.check(config)
    _fill_in_self_teacher(config)
    with _plain_errors(config):
        trd = omega_conf_to_dataclass(config.trd)
    names = [name for name in CHECKS if name not in FILL_IN]
    if unknown := sorted(set(trd.preflight.skip) - set(names)):
        raise ValueError(f"trd.preflight.skip={unknown}: no such check can be left out; choose from {', '.join(names)}")
    if config.distillation.enabled is None:
        config.distillation.enabled = trd.has_server
    batches.set_epochs(config)
    return Setup(config, trd)


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
    setup = read(config)
    for name, run in CHECKS.items():
        if name not in setup.trd.preflight.skip:
            run(setup)
    return setup.trd


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
    if OmegaConf.is_missing(config.trd, "method"):
        raise ValueError(
            "trd.method is not set: method=_base is what methods share; choose method=trd_opd, for example"
        )
    unset = sorted(str(key) for key in OmegaConf.missing_keys(config) if not str(key).startswith("reward.reward_model"))
    if unset:
        raise ValueError(f"not set: {', '.join(unset)}; choose method=, model=, data= and cluster=, or set the keys")


def _fill_in_self_teacher(config: DictConfig) -> None:
    """The student is the model of a self-teacher, also where other keys are read from it."""
    weights = OmegaConf.select(config, "trd.teacher.weights")
    if weights in (Weights.FROZEN, Weights.EMA, Weights.LIVE):
        config.distillation.teacher_models.teacher_model.model_path = config.actor_rollout_ref.model.path
