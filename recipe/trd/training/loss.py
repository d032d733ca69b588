"""The distillation objective on the states of one micro-batch, as the engine calls it inside the forward pass.

Registered with verl (`register_distillation_loss`), so `distillation.distillation_loss.loss_mode=trd` is a name that
verl knows in every process; the worker hands `trd_loss` to its engine through `set_loss_fn`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from verl_ext.engine.observe import ResponseStates
from verl_ext.engine.positions import flat, lengths, response_positions

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


@dataclass(frozen=True, kw_only=True)
class LossParts:
    """What a part of the loss, or all of it, gives for one micro-batch."""

    loss: Tensor
    """Scalar float32: the share of this micro-batch."""
    metrics: dict[str, Metric]
    """Means over the counted tokens of the global batch, once verl has summed micro-batches and averaged ranks."""
    divergence: Tensor | None = None
    """float32 [n] on the host: the divergence at every counted token of the micro-batch."""


def add_masks(data: TensorDict, trd: TrdConfig) -> None:
    """Add the three masks to a batch.

    Args:
        data: jagged `response_mask` [B, R]; with a task reward on samples of their own, `is_policy` [B, 1].
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
    response_lengths = lengths(data["responses"])
    offsets = torch.cat([response_lengths.new_zeros(1), response_lengths.cumsum(0)])
    inside = torch.arange(padded.shape[1], device=padded.device) < response_lengths.unsqueeze(1)
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
    record: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, dict[str, Metric]]:
    """Loss of one micro-batch, and means over the tokens of the global batch as metrics, as verl calls it.

    Args:
        config: of the actor; says how tokens are averaged.
        distillation_config: verl passes it; nothing in it is read.
        model_output: `student` and `teacher` as `DistillationEngine` hands them over.
        data: the micro-batch, with the masks of `add_masks` and their sums over the global batch (`num_<mask>`).
        dp_group: verl passes it; token counts are global already.
        loss: what to compute; the worker binds it.
        record: gets the divergence at every counted token, for which verl has no place; the worker binds it.

    Returns:
        A scalar, this micro-batch's share, and metrics that verl sums over micro-batches and averages over ranks.
    """
    assert loss is not None, "TrdWorker binds the loss"
    parts = micro_batch_loss(config, model_output, data, loss)
    if record is not None and parts.divergence is not None:
        record(parts.divergence)
    return parts.loss, parts.metrics


def micro_batch_loss(
    config: ActorConfig, model_output: dict[str, ResponseStates | None], data: TensorDict, loss: Loss
) -> LossParts:
    """The loss of one micro-batch: divergence on outputs, on hidden states, and policy loss, each where asked for.

    Arguments as of `trd_loss`.
    """
    student, teacher = model_output["student"], model_output["teacher"]
    assert student is not None, "the engine always has a student"
    parts = []
    if loss.divergence is not None:
        parts.append(_divergence_loss(config, student, teacher, data, loss))
    if loss.hidden_coef > 0:
        parts.append(_hidden_loss(config, student, teacher, data, loss))
    if loss.policy is not None:
        parts.append(_policy_loss(config, student, data, loss.policy))
    return LossParts(
        loss=sum((part.loss for part in parts), torch.zeros((), device=student.tokens.device)),
        metrics={name: metric for part in parts for name, metric in part.metrics.items()},
        divergence=next((part.divergence for part in parts if part.divergence is not None), None),
    )


def _divergence_loss(
    config: ActorConfig,
    student: ResponseStates,
    teacher: ResponseStates | None,
    data: TensorDict,
    loss: Loss,
) -> LossParts:
    assert loss.divergence is not None
    assert student.head is not None, "the worker asks the engine for heads where there is a divergence"
    counted, weights = _counted_and_weights(config, data, DISTILL, student.tokens)
    metrics: dict[str, Metric] = {}
    target: Head | TopK | None = None
    if teacher is not None and teacher.head is not None:
        target = replace(teacher.head, swapped=loss.swapped)
    elif "teacher_ids" in data:
        target = _top_k(data, student.tokens)
        # A damaged or foreign position is left out and counted; the denominator stays, so no other one weighs more.
        usable = _is_usable(target, len(student.head.weight))
        metrics["trd/unusable_positions_frac"] = _mean((~usable).float(), counted, data, DISTILL)
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
    metrics |= {f"trd/{name}": _mean(value, counted, data, DISTILL) for name, value in values.items()}
    return LossParts(loss=result.loss.float(), metrics=metrics, divergence=_on_host(values["divergence"], counted))


def _hidden_loss(
    config: ActorConfig,
    student: ResponseStates,
    teacher: ResponseStates | None,
    data: TensorDict,
    loss: Loss,
) -> LossParts:
    assert teacher is not None, "the configuration refuses hidden_mse without scorer engine"
    student_layers, teacher_layers, projections = student.layers, teacher.layers, loss.projections
    if loss.teacher_layers is not None:
        teacher_layers = tuple(teacher_layers[index] for index in loss.teacher_layers)
    if loss.last_layer_only:
        student_layers, teacher_layers = student_layers[-1:], teacher_layers[-1:]
        projections = projections and projections[-1:]
    counted, weights = _counted_and_weights(config, data, HIDDEN, student.layer_tokens)
    result = hidden_mse(
        student=student_layers,
        teacher=teacher_layers,
        weights=weights,
        normalize=loss.normalize,
        projections=projections,
    )
    metrics = {f"trd/{name}": _mean(result[name], counted, data, HIDDEN) for name in ("hidden_mse", "hidden_cosine")}
    divergence = None
    if loss.divergence is None:
        metrics["trd/divergence"] = _mean(result["hidden_mse"], counted, data, HIDDEN)
        divergence = _on_host(result["hidden_mse"], counted)
    return LossParts(loss=loss.hidden_coef * result["loss"], metrics=metrics, divergence=divergence)


def _policy_loss(config: ActorConfig, student: ResponseStates, data: TensorDict, policy: Objective) -> LossParts:
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
    metrics = {"trd/policy_loss": _mean(result.tokens["policy_gradient"], counted, data, POLICY)}
    return LossParts(loss=result.loss.float(), metrics=metrics)


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


def _on_host(values: Tensor, counted: Tensor) -> Tensor:
    return values[counted > 0].detach().float().cpu()


def _mean(values: Tensor, counted: Tensor, data: TensorDict, mask: str) -> Metric:
    """Mean over the counted tokens of the global batch, once verl has summed micro-batches and averaged ranks."""
    total = torch.where(counted > 0, values.detach().float(), 0).sum()
    return Metric(AggregationType.SUM, total * (data["dp_size"] / max(1, data[f"num_{mask}"])))


def _top_k(data: TensorDict, tokens: Tensor) -> TopK:
    """The teacher's top-k at the given tokens, from jagged `teacher_ids` and `teacher_logprobs` [B, P + R, K]."""
    predicting = response_positions(
        sequence_lengths=lengths(data["teacher_ids"]), response_lengths=lengths(data["responses"]), shift=-1
    ).position[tokens]
    return TopK(ids=flat(data["teacher_ids"])[predicting], log_probs=flat(data["teacher_logprobs"])[predicting])


def _is_usable(top_k: TopK, vocab_size: int) -> Tensor:
    """bool [n]: positions without NaN, whose probabilities sum to 1 at most, on tokens that the student has."""
    mass = top_k.log_probs.float().logsumexp(-1)
    return (mass <= 1e-3) & (top_k.ids >= 0).all(-1) & (top_k.ids < vocab_size).all(-1)


def _common_vocabulary(student: Head, teacher: Head | TopK | None) -> int | None:
    """Entries that both heads have; what one has more is padding, as was checked before the run."""
    if not isinstance(teacher, Head) or len(student.weight) == len(teacher.weight):
        return None
    return min(len(student.weight), len(teacher.weight))


def _optional(data: TensorDict, name: str, tokens: Tensor) -> Tensor | None:
    return flat(data[name])[tokens] if name in data else None
