"""Advantage of a pure distillation objective: none. Registered with verl as `distillation`."""

from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

NAME = "distillation"


@register_adv_est(NAME)
def no_advantage(token_level_rewards: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """Zeros: verl's step wants advantages and returns, the objective uses neither.

    Args:
        token_level_rewards: [B, R].

    Returns:
        advantages and returns, each [B, R].
    """
    return torch.zeros_like(token_level_rewards), torch.zeros_like(token_level_rewards)
