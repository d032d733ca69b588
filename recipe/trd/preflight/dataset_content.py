"""The samples of a run, read once from beginning to end: what verl would find out in the middle of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from recipe.trd.config.schema import TrdConfig
from recipe.trd.preflight.data_files import data_files
from recipe.trd.preflight.model_pair import RunModel
from recipe.trd.preflight.verl_keys import SINGLE_TURN
from recipe.trd.rewards import math_reward
from recipe.trd.rewrite.teacher_prompt import chat_ids, reference
from verl_ext.runtime.console import show
from verl_ext.runtime.errors import first_line
from verl_ext.runtime.files import read_lines

SAMPLED = 1000
"""Prompts that are counted in tokens, evenly spread; all where there are fewer."""

FEW = 0.5
"""Share of the prompts that have to be short enough."""


@dataclass(frozen=True)
class Sample:
    """One sample and where it stands."""

    place: str
    prompt: list[dict[str, Any]]
    columns: Mapping[str, Any]

    @property
    def text(self) -> str:
        """Its prompt as one text, to be compared with others."""
        return json.dumps([[message["role"], message["content"]] for message in self.prompt], default=str)


def check(
    config: DictConfig, trd: TrdConfig, *, student: RunModel, train: Sequence[Sample], val: Sequence[Sample]
) -> None:
    """Refuse data that no run can use, warn of what is seldom meant.

    Args:
        config: of the run.
        trd: its node `trd`.
        student: whose chat template says how long prompts are.
        train: training samples, from `read`.
        val: validation samples.

    Raises:
        ValueError: the message names file, row and what to change.
    """
    _check_agents(trd, [*train, *val])
    _check_truths(config, [*train, *val])
    _check_references(config, trd, train)
    num_train = _check_lengths(config, "train_files", train, student)
    _check_lengths(config, "val_files", val, student)
    limit = config.data.train_max_samples
    num_train = num_train if limit in (None, -1) else min(num_train, limit)
    if num_train < config.data.train_batch_size:
        raise ValueError(
            f"data.train_batch_size={config.data.train_batch_size} exceeds the {num_train} samples that "
            "data.train_files give (data.train_max_samples and prompts that are too long left out): lower it, or give "
            "more data"
        )
    texts = [sample.text for sample in train]
    if repeated := len(texts) - len(set(texts)):
        show(f"WARNING {repeated} of {len(texts)} training prompts stand more than once in data.train_files")
    known = set(texts)
    if shared := sum(sample.text in known for sample in val):
        show(
            f"WARNING {shared} of {len(val)} validation prompts are training prompts too: what is validated was "
            "trained on (data.val_files)"
        )


def read(config: DictConfig, key: str) -> list[Sample]:
    """All samples of `data.train_files` or `data.val_files`.

    Args:
        config: of the run.
        key: `train_files` or `val_files`.

    Raises:
        ValueError: there is none, or one that verl could not read; the message names file and row.
    """
    found = []
    for file in data_files(config.data[key]):
        for index, columns in enumerate(_rows(Path(file).expanduser())):
            place = f"data.{key}={file}, row {index}"
            prompt = messages(columns.get(config.data.prompt_key), f"{place}: column {config.data.prompt_key}")
            truth = columns.get("reward_model")
            if not isinstance(truth, Mapping) or truth.get("ground_truth") is None:
                raise ValueError(
                    f"{place}: reward_model={truth!r} has no ground_truth; verl's format is "
                    "{'style': 'rule', 'ground_truth': '42'}: prepare the data again, or leave the row out"
                )
            found.append(Sample(place, prompt, columns))
    if not found:
        raise ValueError(f"data.{key}={config.data[key]} has no sample; prepare the data first, or set data.{key}")
    return found


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".jsonl":
        return read_lines(path)
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from error
    return iter(frame.to_dict("records"))


def _check_truths(config: DictConfig, found: Sequence[Sample]) -> None:
    """Ground truths are what the math reward can compare with; other rewards have forms of their own."""
    if config.reward.custom_reward_function.path not in (f"pkg://{math_reward.__name__}", math_reward.__file__):
        return
    for sample in found:
        try:
            math_reward.truth_text(sample.columns["reward_model"]["ground_truth"])
        except ValueError as error:
            raise ValueError(f"{sample.place}: {error}, or leave the row out") from error


def messages(value: Any, place: str) -> list[dict[str, Any]]:
    """Chat messages of a cell.

    Raises:
        ValueError: they are something else.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
        raise ValueError(
            f"{place} is {type(value).__name__}, not chat messages; verl's format is "
            "[{'role': 'user', 'content': '...'}]"
        )
    found = list(value)
    if not found:
        raise ValueError(f"{place} has no message")
    for message in found:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(f"{place}: {message!r} is no chat message; each has a role and a content")
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise ValueError(
                f"{place}: the content of a message is {message['content']!r}, not a text with something in it"
            )
    if found[-1]["role"] == "assistant":
        raise ValueError(f"{place} ends with a message of the assistant; the last one has to be the problem")
    return [dict(message) for message in found]


def _check_agents(trd: TrdConfig, samples: Sequence[Sample]) -> None:
    """verl lets a column choose the agent loop of a row; tools of one are shown to the student alone."""
    for sample in samples:
        name = sample.columns.get("agent_name") or SINGLE_TURN
        if not trd.upstream and name != SINGLE_TURN:
            raise ValueError(
                f"{sample.place}: agent_name={name}: the teacher of method {trd.method} is shown no tools, so it would "
                f"judge another conversation; set the column to {SINGLE_TURN}, or choose method=grpo"
            )


def _check_references(config: DictConfig, trd: TrdConfig, train: Sequence[Sample]) -> None:
    if trd.teacher_plan is None or not trd.teacher_plan.needs_reference:
        return
    missing = [sample for sample in train if not reference(sample.columns, trd.reference_key)]
    if len(missing) == len(train):
        raise ValueError(
            f"method {trd.method} shows the teacher a reference solution, and no sample of data.train_files="
            f"{config.data.train_files} has one in trd.reference_key={trd.reference_key}; prepare data with solutions, "
            "or set the key"
        )
    if missing:
        show(
            f"WARNING {len(missing)} of {len(train)} training samples have no reference solution in "
            f"{trd.reference_key} (first: {missing[0].place}); they will be masked and counted in trd/no_reference_frac"
        )


def _check_lengths(config: DictConfig, key: str, found: Sequence[Sample], student: RunModel) -> int:
    """How many samples are left when prompts that are too long are filtered; estimated from a part of them."""
    spread = evenly(found, SAMPLED)
    kwargs = config.data.apply_chat_template_kwargs or {}
    lengths = [len(_ids(sample, student, kwargs)) for sample in spread]
    limit = config.data.max_prompt_length
    num_long = sum(length > limit for length in lengths)
    if num_long > FEW * len(lengths):
        raise ValueError(
            f"data.max_prompt_length={limit}: {num_long} of {len(lengths)} prompts of data.{key} are longer (the "
            f"longest has {max(lengths)} tokens under the student's chat template); raise it"
        )
    if num_long:
        show(
            f"WARNING {num_long} of {len(lengths)} prompts of data.{key} are longer than data.max_prompt_length={limit}"
        )
    return (
        len(found) - round(num_long / len(lengths) * len(found)) if config.data.filter_overlong_prompts else len(found)
    )


def _ids(sample: Sample, student: RunModel, template_kwargs: Mapping[str, Any]) -> list[int]:
    try:
        return chat_ids(student.tokenizer, sample.prompt, template_kwargs)
    except Exception as error:  # chat templates raise what they like
        reason = first_line(error)
        raise ValueError(
            f"{sample.place}: the student's chat template cannot render the prompt: {reason}; change the data, or "
            "actor_rollout_ref.model.custom_chat_template"
        ) from error


def evenly(values: Sequence[Any], num: int) -> list[Any]:
    """At most so many of the values, evenly spread, first and last included."""
    if len(values) <= num:
        return list(values)
    return [values[round(index * (len(values) - 1) / (num - 1))] for index in range(num)]
