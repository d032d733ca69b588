"""The distillation objective on the states of one micro-batch, as the engine calls it inside the forward pass.

Registered with verl (`register_distillation_loss`), so `distillation.distillation_loss.loss_mode=trd` is a name that
verl knows in every process; the worker hands `trd_loss` to its engine through `set_loss_fn`.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.distillation.losses import DistillationLossSettings, register_distillation_loss
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import ActorConfig, DistillationConfig

from recipe.trd.config.schema import TrdConfig
from recipe.trd.training.reduction import token_weights
from verl_ext.divergence import (
    Head,
    Objective,
    Projection,
    Tokens,
    TopK,
    first_tokens,
    hidden_mse,
    last_tokens,
    linear_divergence,
)
from verl_ext.engine.distillation import ResponseStates, flat, lengths
from verl_ext.engine.positions import response_rows

LOSS_NAME = "trd"
"""`distillation.distillation_loss.loss_mode` of every method whose loss is computed here."""

DISTILL, HIDDEN, POLICY = "distill_mask", "hidden_mask", "policy_mask"
"""Jagged int64 [B, R] of a batch: tokens that count for the divergences, for hidden states, for the task reward."""

MASKS = (DISTILL, HIDDEN, POLICY)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The configured loss, built once."""

    divergence: Objective | None
    policy: Objective | None
    hidden_coef: float
    normalize: bool
    last_layer_only: bool
    projections: tuple[Projection, ...] | None
    teacher_layers: tuple[int, ...] | None
    """Index of the teacher's layer for every layer of the student; None compares like with like."""
    swapped: tuple[int, int] | None
    """End-of-turn ids of student and teacher that trade places in the teacher's distribution."""
    values: list[Tensor] = field(default_factory=list)
    """Divergence at every counted token of the step so far; the worker reads and empties it."""


def add_masks(data: TensorDict, trd: TrdConfig) -> None:
    """Add the three masks to a batch.

    Args:
        data: jagged `response_mask` [B, R]; with a task reward on rows of their own, `is_policy` [B, 1].
        trd: the method.
    """
    response_mask = data["response_mask"]
    padded = response_mask.to_padded_tensor(0) if response_mask.is_nested else response_mask
    is_policy = flat(data["is_policy"]).reshape(-1, 1).to(padded) if trd.trains_both else None
    hidden = trd.objective.hidden
    has_reward = trd.objective.task_reward_coef > 0
    masks = {
        DISTILL: _chosen(padded, trd.objective.positions, trd.objective.num_positions),
        HIDDEN: _chosen(padded, hidden.positions, hidden.num_positions),
        POLICY: padded if has_reward else torch.zeros_like(padded),
    }
    if is_policy is not None:
        masks = {name: mask * (is_policy if name == POLICY else 1 - is_policy) for name, mask in masks.items()}
    row_lengths = lengths(data["responses"])
    offsets = torch.cat([row_lengths.new_zeros(1), row_lengths.cumsum(0)])
    inside = torch.arange(padded.shape[1], device=padded.device) < row_lengths.unsqueeze(1)
    for name, mask in masks.items():
        data[name] = torch.nested.nested_tensor_from_jagged(mask[inside].long(), offsets)


def _chosen(mask: Tensor, positions: str, num_positions: int | None) -> Tensor:
    if num_positions is None:
        return mask
    choose = {"first": first_tokens, "last": last_tokens}[positions]
    return choose(response_mask=mask, num_tokens=num_positions).to(mask)


@register_distillation_loss(DistillationLossSettings(names=[LOSS_NAME], use_topk=True))
def trd_loss(
    config: ActorConfig,
    distillation_config: DistillationConfig | None,
    model_output: dict[str, ResponseStates | None],
    data: TensorDict,
    dp_group: Any = None,
    *,
    loss: Loss | None = None,
) -> tuple[Tensor, dict[str, Metric]]:
    """Loss of one micro-batch, and means over the tokens of the global batch as metrics.

    Args:
        config: of the actor; says how tokens are averaged.
        distillation_config: verl passes it; nothing in it is read.
        model_output: `student` and `teacher` as `DistillationEngine` hands them over.
        data: the micro-batch, with the masks of `add_masks` and their sums over the global batch (`num_<mask>`).
        dp_group: verl passes it; token counts are global already.
        loss: what to compute; the worker binds it.

    Returns:
        A scalar, this micro-batch's share, and metrics that verl sums over micro-batches and averages over ranks.
    """
    assert loss is not None, "TrdWorker binds the loss"
    student, teacher = model_output["student"], model_output["teacher"]
    assert student is not None, "the engine always has a student"
    metrics: dict[str, Metric] = {}
    total = torch.zeros((), device=student.tokens.device)
    if loss.divergence is not None:
        total = total + _divergence_loss(config, student, teacher, data, loss, metrics)
    if loss.hidden_coef > 0:
        total = total + _hidden_loss(config, student, teacher, data, loss, metrics)
    if loss.policy is not None:
        total = total + _policy_loss(config, student, data, loss.policy, metrics)
    return total, metrics


def _divergence_loss(
    config: ActorConfig,
    student: ResponseStates,
    teacher: ResponseStates | None,
    data: TensorDict,
    loss: Loss,
    metrics: dict[str, Metric],
) -> Tensor:
    assert loss.divergence is not None
    assert student.head is not None, "the worker asks the engine for heads where there is a divergence"
    counted, weights = _counted_and_weights(config, data, DISTILL, student.tokens)
    target: Head | TopK | None = None
    if teacher is not None and teacher.head is not None:
        target = replace(teacher.head, swapped=loss.swapped)
    elif "teacher_ids" in data:
        target = _top_k(data, student.tokens)
        # A damaged or foreign row is left out and counted; the denominator stays, so no other row weighs more.
        usable = _is_usable(target, len(student.head.weight))
        metrics["trd/unusable_rows_frac"] = _mean((~usable).float(), counted, data, DISTILL)
        counted, weights = counted * usable, weights * usable
    result = linear_divergence(
        student=student.head,
        teacher=target,
        tokens=Tokens(
            weights=weights,
            ids=flat(data["responses"])[student.tokens],
            old_log_probs=_optional(data, "old_log_probs", student.tokens),
        ),
        objective=loss.divergence,
        vocab_size=_common_vocabulary(student.head, target),
    )
    values = dict(result.tokens)
    values["divergence"] = values.pop("token_loss")
    loss.values.append(values["divergence"][counted > 0].float().cpu())
    metrics |= {f"trd/{name}": _mean(value, counted, data, DISTILL) for name, value in values.items()}
    return result.loss.float()


def _hidden_loss(
    config: ActorConfig,
    student: ResponseStates,
    teacher: ResponseStates | None,
    data: TensorDict,
    loss: Loss,
    metrics: dict[str, Metric],
) -> Tensor:
    assert teacher is not None, "the configuration refuses hidden_mse without scorer engine"
    ours, theirs, projections = student.layers, teacher.layers, loss.projections
    if loss.teacher_layers is not None:
        theirs = tuple(theirs[index] for index in loss.teacher_layers)
    if loss.last_layer_only:
        ours, theirs, projections = ours[-1:], theirs[-1:], projections and projections[-1:]
    counted, weights = _counted_and_weights(config, data, HIDDEN, student.layer_tokens)
    result = hidden_mse(
        student=ours, teacher=theirs, weights=weights, normalize=loss.normalize, projections=projections
    )
    metrics |= {f"trd/{name}": _mean(result[name], counted, data, HIDDEN) for name in ("hidden_mse", "hidden_cosine")}
    if loss.divergence is None:
        metrics["trd/divergence"] = _mean(result["hidden_mse"], counted, data, HIDDEN)
        loss.values.append(result["hidden_mse"][counted > 0].float().cpu())
    return loss.hidden_coef * result["loss"]


def _policy_loss(
    config: ActorConfig, student: ResponseStates, data: TensorDict, policy: Objective, metrics: dict[str, Metric]
) -> Tensor:
    assert student.head is not None, "the worker asks the engine for heads where there is a policy loss"
    counted, weights = _counted_and_weights(config, data, POLICY, student.tokens)
    result = linear_divergence(
        student=student.head,
        teacher=None,
        tokens=Tokens(
            weights=weights,
            ids=flat(data["responses"])[student.tokens],
            old_log_probs=_optional(data, "old_log_probs", student.tokens),
            advantages=flat(data["advantages"])[student.tokens].float(),
        ),
        objective=policy,
    )
    metrics["trd/policy_loss"] = _mean(result.tokens["policy_gradient"], counted, data, POLICY)
    return result.loss.float()


def _counted_and_weights(config: ActorConfig, data: TensorDict, mask: str, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """1 where a token counts, and what it weighs; [n] float32 for the given tokens of the micro-batch."""
    weights = token_weights(
        data[mask],
        loss_agg_mode=config.loss_agg_mode,
        num_tokens=data[f"num_{mask}"],
        num_sequences=data["global_batch_size"],
        num_ranks=data["dp_size"],
        loss_scale_factor=config.loss_scale_factor,
    )
    return flat(data[mask])[tokens].float(), weights[tokens]


def _mean(values: Tensor, counted: Tensor, data: TensorDict, mask: str) -> Metric:
    """Mean over the counted tokens of the global batch, once verl has summed micro-batches and averaged ranks."""
    total = torch.where(counted > 0, values.detach().float(), 0).sum()
    return Metric(AggregationType.SUM, total * (data["dp_size"] / max(1, data[f"num_{mask}"])))


def _top_k(data: TensorDict, tokens: Tensor) -> TopK:
    """The teacher's rows of the given tokens, from jagged `teacher_ids` and `teacher_logprobs` [B, P + R, K]."""
    rows = response_rows(
        sequence_lengths=lengths(data["teacher_ids"]), response_lengths=lengths(data["responses"]), shift=-1
    ).position[tokens]
    return TopK(ids=flat(data["teacher_ids"])[rows], log_probs=flat(data["teacher_logprobs"])[rows])


def _is_usable(top_k: TopK, vocab_size: int) -> Tensor:
    """bool [n]: rows without NaN, whose probabilities sum to 1 at most, on tokens that the student has."""
    mass = top_k.log_probs.float().logsumexp(-1)
    return (mass <= 1e-3) & (top_k.ids >= 0).all(-1) & (top_k.ids < vocab_size).all(-1)


def _common_vocabulary(student: Head, teacher: Head | TopK | None) -> int | None:
    """Rows that both heads have; what one has more is padding, as was checked before the run."""
    if not isinstance(teacher, Head) or len(student.weight) == len(teacher.weight):
        return None
    return min(len(student.weight), len(teacher.weight))


def _optional(data: TensorDict, name: str, tokens: Tensor) -> Tensor | None:
    return flat(data[name])[tokens] if name in data else None
