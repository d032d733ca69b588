"""The reward function, called once on a real sample: what it raises is known before an engine starts."""

import inspect
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils.reward_score import default_compute_score

from verl_ext.runtime.errors import one_line


def check(config: DictConfig, sample: Mapping[str, Any]) -> None:
    """Load the reward function and grade an answer to the first training sample.

    Args:
        config: of the run.
        sample: columns of a training sample.

    Raises:
        ValueError: it cannot be loaded, raises, returns no number, or no answer where `trd.rewrite.reject` needs it.
    """
    function = config.reward.custom_reward_function
    key = f"reward.custom_reward_function.path={function.path}"
    try:
        compute_score = get_custom_reward_fn(config) or default_compute_score
    except Exception as error:  # whatever the user's module does when it is imported
        raise ValueError(f"{key} (data.reward_function): it cannot be loaded: {one_line(error)}") from error
    if inspect.iscoroutinefunction(compute_score):
        return
    source = sample[config.data.reward_fn_key]
    try:
        score = compute_score(
            data_source=source,
            solution_str="The answer is \\boxed{0}.",
            ground_truth=sample["reward_model"]["ground_truth"],
            extra_info=sample.get("extra_info") or {},
        )
    except Exception as error:  # whatever the user's function does
        raise ValueError(
            f"{key}: on the first training sample (data_source={source}) it raises {one_line(error)}; mend the "
            "function, the ground truth, or data.reward_function"
        ) from error
    value = score.get("score") if isinstance(score, Mapping) else score
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if isinstance(value, str) or not _is_float(value):
        raise ValueError(
            f"{key}: on the first training sample it returns {score!r}; return a number, or a dict with `score`"
        )
    reject = OmegaConf.select(config, "trd.rewrite.reject.no_answer")
    if reject and not (isinstance(score, Mapping) and "pred" in score):
        raise ValueError(
            f"trd.rewrite.reject.no_answer=True: the reward function {function.path} does not say which answer it "
            "found; let it return a dict with `pred`, or set it to false"
        )


def _is_float(value: Any) -> bool:
    try:
        return float(value) == float(value)
    except (TypeError, ValueError):
        return False
