"""Data files and reward function: they are there, and hold what the run reads."""

from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from recipe.trd.config.schema import TrdConfig
from recipe.trd.rewards import code_reward, sandbox


def check_columns(config: DictConfig) -> None:
    """Files are there and hold the columns that every run reads.

    Raises:
        ValueError: one does not.
    """
    wanted = {config.data.prompt_key, config.data.reward_fn_key, "reward_model"}
    for key in ("train_files", "val_files"):
        for file in data_files(config.data[key]):
            path = Path(file).expanduser()
            if not path.is_file():
                raise ValueError(f"data.{key}={file}: no such file; prepare the data first, or set data.{key}")
            columns = set(_columns(path))
            if not wanted <= columns:
                raise ValueError(
                    f"data.{key}={file} lacks the columns {sorted(wanted - columns)} (it has {sorted(columns)}); "
                    "verl's format has prompt (chat messages), data_source and reward_model.ground_truth"
                )


def check_reward(config: DictConfig) -> None:
    """Generated code runs here, where the reward is whether it does.

    Raises:
        ValueError: it does not run, or the reward function does not know an option.
    """
    function = config.reward.custom_reward_function
    if function.path not in ("pkg://recipe.trd.rewards.code_reward", code_reward.__file__):
        return
    try:
        code_reward.check(**dict(function.reward_kwargs))
    except (TypeError, sandbox.SandboxError) as error:
        raise ValueError(f"reward.custom_reward_function.path={function.path}: {error}") from error


def check_references(config: DictConfig, trd: TrdConfig) -> None:
    """Training samples have a place for the reference solution; those that leave it empty are counted in the run.

    Raises:
        ValueError: the column is missing.
    """
    column = trd.reference_key.split(".")[0]
    for file in data_files(config.data.train_files):
        if column not in _columns(Path(file).expanduser()):
            raise ValueError(
                f"method {trd.method} shows the teacher a reference solution, and data.train_files={file} has no "
                f"column {column} (trd.reference_key={trd.reference_key}); prepare data with solutions, or set the key"
            )


def data_files(value: Any) -> list[str]:
    """Files of `data.train_files` or `data.val_files`, which may be one path or a list."""
    return [value] if isinstance(value, str) else list(value)


def _columns(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return parquet.read_schema(path).names
    return list(pd.read_json(path, lines=path.suffix == ".jsonl", nrows=1 if path.suffix == ".jsonl" else None).columns)
