"""Before the first step: is the divergence of the student from itself 0, do servers agree with the trainer, and does
the teacher say the same thing twice?

What is wrong with weights, heads, positions or log-probs shows here within seconds; a loss falls anyway.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from recipe.trd.config.schema import TrdConfig
from recipe.trd.training.loss import add_masks
from verl_ext.engine.probe import Probe

SELF_BOUND = 1e-3
"""Largest divergence of the student from itself at a position, nats; both sides come from one module."""


@dataclass(frozen=True)
class FirstLook:
    """What one rank of the trainer found on a few tokens."""

    probe: Probe
    """Log-probs of the tokens, for the servers to be compared with."""
    self_divergence: float | None
    """Largest divergence of the student from itself; None where the method has none that could be 0."""


def batch_of(token_ids: list[int], trd: TrdConfig) -> TensorDict:
    """A batch of one sample, which student and teacher read alike: its second half is the response.

    Args:
        token_ids: at least two.
        trd: the method.
    """
    num_prompt = max(1, len(token_ids) // 2)
    ids, response = torch.tensor(token_ids), torch.tensor(token_ids[num_prompt:])
    columns = {
        "prompts": ids[:num_prompt],
        "responses": response,
        "input_ids": ids,
        "teacher_input_ids": ids,
        "position_ids": torch.arange(len(ids)),
        "response_mask": torch.ones_like(response),
        "loss_mask": torch.ones_like(response),
        "is_policy": torch.tensor([0]),
        "advantages": torch.zeros(len(response)),
    }
    data = tu.get_tensordict(
        {name: torch.nested.as_nested_tensor([value], layout=torch.jagged) for name, value in columns.items()}
    )
    add_masks(data, trd)
    return data


def judge(found: FirstLook) -> None:
    """Whether the trainer's own side holds.

    Raises:
        RuntimeError: the divergence of the student from itself is not 0.
    """
    value = found.self_divergence
    # Written so that NaN fails, too.
    if value is not None and not abs(value) <= SELF_BOUND:
        raise RuntimeError(
            f"the divergence of the student from itself is {value:.3g} nats under equal contexts, and should be 0: its "
            "attention, packing or head does not compute what the loss believes; try "
            "actor_rollout_ref.model.use_remove_padding=False, and report it"
        )


def compare_answers(first: list[np.ndarray], second: list[np.ndarray], *, stop_above: float | None) -> float | None:
    """Largest mean |log p| difference between two answers of the teacher's servers to one question, nats.

    Args:
        first: log-probs [n] of every server; empty of one that did not answer.
        second: the same, asked again.
        stop_above: bound on the mean; None: no bound.

    Raises:
        RuntimeError: it is larger than the bound.
    """
    answers = [answer for answer in (*first, *second) if answer.size]
    if len(answers) < 2:
        return None
    gap = max(float(np.abs(answer - answers[0]).mean()) for answer in answers[1:])
    if stop_above is not None and not gap <= stop_above:
        raise RuntimeError(
            f"the teacher's servers answer one question twice with a difference of {gap:.3g} nats a token, more than "
            f"trd.server_gap_stop={stop_above}: their weights are not whole, or not the same"
        )
    return gap


def refuse_zero_gradient(metrics: Mapping[str, Any]) -> None:
    """The first step of a method with a divergence has to teach something.

    Args:
        metrics: of the step.

    Raises:
        RuntimeError: its gradient is exactly 0, though samples counted.
    """
    if metrics.get("actor/grad_norm") == 0 and metrics.get("trd/masked_frac", 0.0) < 1:
        raise RuntimeError(
            "the gradient of the first step is exactly 0: teacher and student say the same (the same weights under the "
            "same context?), or clips leave nothing (trd.objective.entry_clip, position_clip, entropy_above)"
        )
