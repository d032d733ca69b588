"""The distillation objective as verl's engine calls it, twice for every micro-batch.

First inside the forward pass with `student_logits`, to return values per token; then with `model_output`, to reduce
them. The loss is registered with verl (`register_distillation_loss`), so
`distillation.distillation_loss.loss_mode=trd` is a name that verl knows in every process; the worker hands `trd_loss`
to its engine through `set_loss_fn`, because verl's own function computes one hard-wired divergence whatever the loss
mode is.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.distillation.losses import DistillationLossSettings, register_distillation_loss
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils.metric import AggregationType, Metric
from verl.utils.ulysses import get_ulysses_sequence_parallel_world_size, slice_input_tensor
from verl.workers.config import ActorConfig, DistillationConfig
from verl.workers.utils.padding import no_padding_2_padding

from recipe.trd.alignment import response_rows
from verl_ext.divergence import forward_kl_topk

LOSS_NAME = "trd"
"""`distillation.distillation_loss.loss_mode` of every method whose loss is computed here."""


def divergence_per_position(student_logits: Tensor, data: TensorDict) -> dict[str, Tensor]:
    """Divergence and diagnostics at every packed position; zero where no response token is predicted.

    Only response rows are computed. With Ulysses sequence parallelism every rank holds a slice of the padded sequence.

    Args:
        student_logits: [1, T / sp, V], already divided by the temperature.
        data: jagged `prompts`, `responses`, `teacher_ids` and `teacher_logprobs` [B, P + R, K].

    Returns:
        Tensors [1, T / sp], float32: the outputs of `forward_kl_topk`.
    """
    logits = student_logits.squeeze(0)
    teacher_ids, teacher_log_probs = data["teacher_ids"].values(), data["teacher_logprobs"].values()
    # Every response row carries its position + 1, so that verl's slicing, which pads with 0, leaves it recognisable.
    marks = torch.zeros(1, teacher_ids.shape[0], dtype=torch.int64, device=logits.device)
    positions = response_rows(data["prompts"], data["responses"])
    marks[0, positions] = positions + 1
    if get_ulysses_sequence_parallel_world_size() > 1:
        marks = slice_input_tensor(marks, dim=1)
    rows = marks.squeeze(0).nonzero().squeeze(-1)
    positions = marks[0, rows] - 1
    values = forward_kl_topk(
        student_logits=logits[rows],
        teacher_ids=teacher_ids[positions],
        teacher_log_probs=teacher_log_probs[positions],
    )
    blank = torch.zeros(logits.shape[0], dtype=values["divergence"].dtype, device=logits.device)
    return {name: blank.index_put((rows,), value).unsqueeze(0) for name, value in values.items()}


def trd_loss(
    config: ActorConfig,
    distillation_config: DistillationConfig,
    model_output: dict[str, Any] | None = None,
    data: TensorDict | None = None,
    dp_group: Any = None,
    student_logits: Tensor | None = None,
    data_format: str = "thd",
) -> Any:
    """Loss function of the training worker, with the signature of verl's `distillation_ppo_loss`.

    Returns:
        With `student_logits`: dict of tensors [1, T / sp]. Else (loss, metrics): a scalar, this micro-batch's share
        of the loss over the global batch (`actor.loss_agg_mode`, token mean by default), and token means as metrics.
    """
    assert data is not None, "verl passes the micro-batch in both calls"
    if student_logits is not None:
        return divergence_per_position(student_logits, data)
    assert model_output is not None, "verl passes the model's output where it passes no logits"
    losses, metrics = distillation_losses(config, distillation_config, model_output, data)
    loss = agg_loss(
        losses,
        _response_mask(data),
        config.loss_agg_mode,
        global_batch_size=data["global_batch_size"],
        loss_scale_factor=config.loss_scale_factor,
        **_token_count(data),
    )
    return loss, metrics


@register_distillation_loss(DistillationLossSettings(names=[LOSS_NAME], use_topk=True))
def distillation_losses(
    config: ActorConfig, distillation_config: DistillationConfig, model_output: dict[str, Any], data: TensorDict
) -> tuple[Tensor, dict[str, Metric]]:
    """Per-token losses [B, R] in nats, and every per-token output as its mean over the tokens of the global batch."""
    mask = _response_mask(data)
    metrics = {}
    for name in (
        "divergence",
        "teacher_mass",
        "student_mass",
        "student_entropy",
        "teacher_entropy",
        "argmax_agreement",
    ):
        values = no_padding_2_padding(model_output[name].detach(), data)
        mean = agg_loss(values, mask, "token-mean", **_token_count(data))
        metrics[f"trd/{name}"] = Metric(AggregationType.SUM, mean)
    return no_padding_2_padding(model_output["divergence"], data), metrics


def _response_mask(data: TensorDict) -> Tensor:
    """bool [B, R]: the tokens that count."""
    mask = data["response_mask"]
    return (mask.to_padded_tensor(0) if mask.is_nested else mask).bool()


def _token_count(data: TensorDict) -> dict[str, int]:
    """Denominator of a token mean over the global batch; 1 where every sample was masked, so that the loss is 0, not
    0/0."""
    return {"dp_size": data["dp_size"], "batch_num_tokens": max(1, int(data["batch_num_tokens"]))}
