"""What a loss sees of a model: states at the response tokens, and the output head while FSDP holds it unsharded.

`observe` runs the teacher's sequence through an engine; `at_responses` picks the states of one model's pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.ulysses import gather_outputs_and_unpad

from verl_ext.divergence import Head
from verl_ext.engine.causal_lm import HiddenStates
from verl_ext.engine.positions import flat, jagged, lengths, response_positions


class ObservedEngine(Protocol):
    """What `observe` needs of an engine of distillation.py."""

    module: Any
    use_ulysses_sp: bool

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        """verl's: arguments of the module, and what undoes its padding."""

    def autocast(self) -> torch.autocast:
        """Precision of a forward pass."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a loss wants to see of a model in one micro-batch."""

    tokens: Tensor
    """int64 [N]: response tokens of the micro-batch that this rank's student predicts."""
    layer_tokens: Tensor
    """int64 [M]: those whose layers it has; M differs from N only where a sequence is sliced."""
    with_head: bool
    """Whether it wants the output head, which is unsharded only inside its own forward pass."""
    with_layers: bool
    """Whether it wants the output of every layer."""


@dataclass(frozen=True, kw_only=True)
class ResponseStates:
    """One model's states at the response tokens of this rank.

    tokens int64 [N] and layer_tokens int64 [M]: which response tokens of the micro-batch. hidden [N, d]: the last
    hidden states that predict them. head: the output head with the same `hidden`; None where nobody asked. layers: L
    tensors [M, d], the states at layer_tokens, or ().
    """

    tokens: Tensor
    layer_tokens: Tensor
    hidden: Tensor
    head: Head | None
    layers: tuple[Tensor, ...]


Then = Callable[[ResponseStates], Any]
"""What to do with the states, inside the forward pass."""


def at_responses(
    states: HiddenStates, wanted: Wanted, *, predicting: Tensor, layer_positions: Tensor, then: Then
) -> Any:
    """Return `then` of the states at response tokens, called inside the head's forward pass if the head is wanted.

    Args:
        states: of one forward pass; last [B, S, d] or [T, d], and layers.
        wanted: what of them.
        predicting: int64 [N], positions that predict wanted.tokens.
        layer_positions: int64 [M], positions of wanted.layer_tokens.
        then: what to do with them.
    """
    without_head = ResponseStates(
        tokens=wanted.tokens,
        layer_tokens=wanted.layer_tokens,
        hidden=_flattened(states.last)[predicting],
        head=None,
        layers=tuple(_flattened(layer)[layer_positions] for layer in states.layers),
    )
    if not wanted.with_head:
        return then(without_head)
    return states.with_head(without_head.hidden, lambda head: then(replace(without_head, head=head)))


def _flattened(hidden: Tensor) -> Tensor:
    return hidden.flatten(0, -2)


def observe(engine: ObservedEngine, data: TensorDict, wanted: Wanted, *, then: Then) -> Any:
    """Run `teacher_input_ids` without gradient, and return `then` of the states at response tokens.

    Args:
        engine: holds the module.
        data: a micro-batch; jagged `teacher_input_ids` [B, P_t + R'] end with what the student answered. A padding
            sample may have a longer response than the student's, and is masked.
        wanted: what `then` gets.
        then: called inside the module's forward pass.
    """
    teacher_data = teacher_batch(data)
    inputs, arguments = engine.prepare_model_inputs(micro_batch=teacher_data)
    packed = tu.get_non_tensor_data(data=data, key="use_remove_padding", default=True)
    predicting, layer_positions = (
        response_positions(
            sequence_lengths=lengths(teacher_data["input_ids"]),
            response_lengths=lengths(data["responses"]),
            shift=shift,
            width=None if packed else inputs["input_ids"].shape[1],
        ).position
        for shift in (-1, 0)
    )

    def whole(hidden: Tensor) -> Tensor:
        """[T, d] of all ranks that hold slices of the sequences."""
        flat_hidden = hidden.flatten(0, 1)
        if not engine.use_ulysses_sp:
            return flat_hidden
        return gather_outputs_and_unpad(
            flat_hidden, gather_dim=0, unpad_dim=0, padding_size=arguments["pad_size"], grad_scaler=False
        )

    def consumer(states: HiddenStates) -> Any:
        gathered = replace(states, last=whole(states.last), layers=tuple(map(whole, states.layers)))
        return at_responses(
            gathered,
            wanted,
            predicting=predicting[wanted.tokens],
            layer_positions=layer_positions[wanted.layer_tokens],
            then=then,
        )

    with torch.no_grad(), engine.autocast():
        return engine.module(**inputs, use_cache=False, consumer=consumer, with_layers=wanted.with_layers)


def teacher_batch(data: TensorDict) -> TensorDict:
    """The teacher's sequences in the form that `prepare_model_inputs` takes."""
    ids = data["teacher_input_ids"]
    sample_lengths = lengths(ids)
    starts = sample_lengths.cumsum(0) - sample_lengths
    positions = torch.arange(int(sample_lengths.sum()), device=sample_lengths.device)
    positions = positions - torch.repeat_interleave(starts, sample_lengths)
    batch = TensorDict(
        {"input_ids": jagged(flat(ids), sample_lengths), "position_ids": jagged(positions, sample_lengths)},
        batch_size=len(sample_lengths),
    )
    settings = {
        key: tu.get_non_tensor_data(data=data, key=key, default=None)
        for key in ("use_remove_padding", "pad_mode", "pad_token_id")
    }
    tu.assign_non_tensor(batch, temperature=1.0, **{key: value for key, value in settings.items() if value is not None})
    return batch
