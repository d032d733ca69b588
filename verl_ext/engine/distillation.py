"""verl's FSDP engine with a loss on hidden rows, and the frozen teacher that computes beside it.

The student's forward pass runs inside the teacher's: at that moment FSDP holds both heads unsharded, and the loss has
everything it needs without a copy. Only rows of response tokens reach a head.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.utils.metric import Metric
from verl.utils.ulysses import gather_outputs_and_unpad
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from verl_ext.divergence import Head
from verl_ext.engine.causal_lm import HiddenStates, hand_over_hidden_states
from verl_ext.engine.positions import Rows, response_rows

VENDOR = "verl_ext"
"""Value of VERL_ENGINE_VENDOR under which verl finds these engines."""

FROZEN = "frozen_language_model"
"""verl's `model_type` of the teacher."""

_REGISTER = {"backend": ["fsdp", "fsdp2"], "device": ["cuda", "npu"], "vendor": VENDOR}


@dataclass(frozen=True, kw_only=True)
class ResponseStates:
    """One model's states at the response tokens of this rank; N and M differ only where a sequence is sliced.

    head: its `hidden` [N, d] are the rows that predict tokens[0:N]; None where nobody asked. layers: L tensors [M, d],
    the states at layer_tokens[0:M], or (). tokens and layer_tokens int64: which response tokens of the micro-batch.
    rows: `hidden` once more, for a teacher that shares the student's head.
    """

    head: Head | None
    layers: tuple[Tensor, ...]
    tokens: Tensor
    layer_tokens: Tensor
    rows: Tensor | None = None


class Average(Protocol):
    """An average of weights (self_teacher.py)."""

    def update(self) -> None:
        """Once for every optimiser step."""


class Teacher(Protocol):
    """Who reads `teacher_input_ids`: another engine, or the student's own module (self_teacher.py)."""

    def observe(
        self,
        data: TensorDict,
        *,
        tokens: Tensor,
        layer_tokens: Tensor,
        with_head: bool,
        with_layers: bool,
        then: Callable[[ResponseStates], Any],
    ) -> None:
        """See the function `observe`; states without a head are those of the student's own module."""


@EngineRegistry.register(model_type="language_model", **_REGISTER)
class DistillationEngine(FSDPEngineWithLMHead):
    """The student's engine.

    The loss function is called once for every micro-batch, inside the forward pass, as verl calls it there:
    `loss_function(model_output=..., data=..., dp_group=...)`, where `model_output` has `student` and `teacher`
    (`ResponseStates`; the latter None without a teacher). It returns the loss and its metrics. Without a loss
    function (log-probs), everything is verl's own.
    """

    teacher: "Teacher | None" = None
    """Set by the worker; reads the field `teacher_input_ids` of every micro-batch."""
    with_head = True
    """Whether the loss wants output heads; without it no head is ever used."""
    with_layers = False
    """Whether the loss wants the output of every layer."""
    counted: tuple[str, ...] = ()
    """Jagged fields [B, R] whose sum over the global batch the loss divides by, as non-tensor `num_<field>`."""

    average: "Average | None" = None
    """Moves towards the parameters after every optimiser step."""

    def optimizer_step(self) -> float:
        """verl's step; the average follows it."""
        grad_norm = super().optimizer_step()
        if self.average is not None:
            self.average.update()
        return grad_norm

    def _build_module(self) -> torch.nn.Module:
        module = super()._build_module()
        hand_over_hidden_states(module)
        return module

    def forward_backward_batch(
        self, data: TensorDict, loss_function: Callable | None, forward_only: bool = False
    ) -> Any:
        """verl's accumulation over micro-batches, which are cut by the longer of the two contexts."""
        if loss_function is not None:
            data = data.copy()
            counts = torch.stack([flat(data[name]).sum() for name in self.counted] or [torch.zeros(())])
            counts = counts.to(get_device_id(), torch.int64)
            dist.all_reduce(counts, group=self.get_data_parallel_group())
            numbers = {f"num_{name}": count for name, count in zip(self.counted, counts.tolist(), strict=False)}
            tu.assign_non_tensor(data, **numbers)
            if self.teacher is not None:
                data["student_input_ids"] = data["input_ids"]
                data["input_ids"] = _longer(data["input_ids"], data["teacher_input_ids"])
        return super().forward_backward_batch(data, loss_function, forward_only)

    def forward_step(
        self, micro_batch: TensorDict, loss_function: Callable | None, forward_only: bool
    ) -> tuple[Tensor, dict[str, Any]]:
        """Loss of one micro-batch with its graph, and what verl collects of it."""
        if loss_function is None:
            return super().forward_step(micro_batch, loss_function, forward_only)
        data = micro_batch.to(get_device_id())
        if "student_input_ids" in data:
            data["input_ids"] = data["student_input_ids"]
        # Gradients are averaged over all ranks, also over those that hold slices of the same sequences.
        tu.assign_non_tensor(data, dp_size=data["dp_size"] * self.ulysses_sequence_parallel_size)
        inputs, _ = self.prepare_model_inputs(micro_batch=data)
        rows, layer_rows = (self._rows(data, inputs["input_ids"], shift=shift) for shift in (-1, 0))
        result: dict[str, Any] = {}

        def with_teacher(teacher: ResponseStates | None) -> None:
            def with_student(student: ResponseStates) -> dict[str, Tensor]:
                loss, result["metrics"] = loss_function(
                    model_output={"student": student, "teacher": _with_a_head(teacher, student)},
                    data=data,
                    dp_group=self.get_data_parallel_group(),
                )
                return {"loss": loss}

            def consumer(states: HiddenStates) -> dict[str, Tensor]:
                flattened = [state.flatten(0, 1) for state in (states.last, *states.layers)]
                return _with_states(
                    states,
                    with_head=self.with_head,
                    rows=flattened[0][rows.position],
                    layers=tuple(layer[layer_rows.position] for layer in flattened[1:]),
                    tokens=rows.token,
                    layer_tokens=layer_rows.token,
                    then=with_student,
                )

            with torch.set_grad_enabled(not forward_only), self.autocast():
                result["loss"] = self.module(
                    **inputs, use_cache=False, consumer=consumer, with_layers=self.with_layers
                )["loss"]

        if self.teacher is None:
            with_teacher(None)
        else:
            self.teacher.observe(
                data,
                tokens=rows.token,
                layer_tokens=layer_rows.token,
                with_head=self.with_head,
                with_layers=self.with_layers,
                then=with_teacher,
            )
        loss = result["loss"]
        return loss, self._report(loss, result["metrics"])

    def autocast(self) -> torch.autocast:
        """The precision of this engine's forward passes, whatever the surrounding one is."""
        return torch.autocast(
            device_type=get_device_name(), dtype=self._autocast_dtype, enabled=self._autocast_dtype != torch.float32
        )

    def _rows(self, data: TensorDict, model_ids: Tensor, *, shift: int) -> Rows:
        packed = tu.get_non_tensor_data(data=data, key="use_remove_padding", default=True)
        return response_rows(
            sequence_lengths=lengths(data["input_ids"]),
            response_lengths=lengths(data["responses"]),
            shift=shift,
            width=None if packed else model_ids.shape[1],
            shard=dist.get_rank(self.ulysses_parallel_group) if self.use_ulysses_sp else 0,
            num_shards=self.ulysses_sequence_parallel_size,
        )

    def _report(self, loss: Tensor, metrics: dict[str, Metric]) -> dict[str, Any]:
        """Loss and metrics as numbers; those of ranks that share sequences are averaged, as verl does over the rest."""
        value = loss.detach().clone()
        if self.use_ulysses_sp:
            dist.all_reduce(value, group=self.ulysses_parallel_group)
            value /= self.ulysses_sequence_parallel_size
            everyones: list[Any] = [None] * self.ulysses_sequence_parallel_size
            dist.all_gather_object(everyones, metrics, group=self.ulysses_parallel_group)
            metrics = {
                name: Metric(metric.aggregation, Metric.aggregate_dp([others[name] for others in everyones]))
                for name, metric in metrics.items()
            }
        return {"model_output": {}, "loss": value.item(), "metrics": metrics}


@EngineRegistry.register(model_type=FROZEN, **_REGISTER)
class FrozenEngine(DistillationEngine):
    """A sharded model without gradient and optimiser."""

    def _build_module(self) -> torch.nn.Module:
        return super()._build_module().requires_grad_(False)

    def _build_optimizer(self, module: torch.nn.Module) -> None:
        return None

    def _build_lr_scheduler(self, optimizer: None) -> None:
        return None

    def observe(self, data: TensorDict, **wanted: Any) -> None:
        """See `observe`."""
        self.module.eval()
        observe(self, data, **wanted)


def observe(
    engine: DistillationEngine,
    data: TensorDict,
    *,
    tokens: Tensor,
    layer_tokens: Tensor,
    with_head: bool,
    with_layers: bool,
    then: Callable[[ResponseStates], Any],
) -> None:
    """Run `teacher_input_ids` without gradient and call `then` on the states at response tokens, in the forward pass.

    Args:
        engine: holds the module.
        data: a micro-batch; jagged `teacher_input_ids` [B, P_t + R'] end with what the student answered. A row of
            padding may have a longer response than the student's, and is masked.
        tokens: int64 [N], response tokens of the micro-batch that this rank's student predicts.
        layer_tokens: int64 [M], those whose layers it has.
        with_head: whether `then` gets the output head, which is unsharded while it runs.
        with_layers: whether `then` gets the layers.
        then: what to do with the states.
    """
    teacher_data = _teacher_batch(data)
    inputs, arguments = engine.prepare_model_inputs(micro_batch=teacher_data)
    packed = tu.get_non_tensor_data(data=data, key="use_remove_padding", default=True)
    position = {
        shift: response_rows(
            sequence_lengths=lengths(teacher_data["input_ids"]),
            response_lengths=lengths(data["responses"]),
            shift=shift,
            width=None if packed else inputs["input_ids"].shape[1],
        ).position
        for shift in (-1, 0)
    }

    def gathered(hidden: Tensor) -> Tensor:
        flat_hidden = hidden.flatten(0, 1)
        if not engine.use_ulysses_sp:
            return flat_hidden
        return gather_outputs_and_unpad(
            flat_hidden, gather_dim=0, unpad_dim=0, padding_size=arguments["pad_size"], grad_scaler=False
        )

    def consumer(states: HiddenStates) -> dict[str, Tensor]:
        _with_states(
            states,
            with_head=with_head,
            rows=gathered(states.last)[position[-1][tokens]],
            layers=tuple(gathered(layer)[position[0][layer_tokens]] for layer in states.layers),
            tokens=tokens,
            layer_tokens=layer_tokens,
            then=then,
        )
        return {}

    with torch.no_grad(), engine.autocast():
        engine.module(**inputs, use_cache=False, consumer=consumer, with_layers=with_layers)


def flat(field: Tensor) -> Tensor:
    """Values of a jagged or dense field, one behind the other; trailing dimensions stay."""
    return field.values() if field.is_nested else field.flatten(0, 1)


def lengths(field: Tensor) -> Tensor:
    """int64 [B]: tokens in every row of a jagged or dense field."""
    if field.is_nested:
        return field.offsets().diff()
    return torch.full((field.shape[0],), field.shape[1], device=field.device)


def _with_states(
    states: HiddenStates,
    *,
    with_head: bool,
    rows: Tensor,
    layers: tuple[Tensor, ...],
    tokens: Tensor,
    layer_tokens: Tensor,
    then: Callable[[ResponseStates], Any],
) -> Any:
    """Call `then`, inside the head's forward pass if there is to be a head."""
    without = ResponseStates(rows=rows, head=None, layers=layers, tokens=tokens, layer_tokens=layer_tokens)
    if not with_head:
        return then(without)
    return states.with_head(rows, lambda head: then(replace(without, head=head)))


def _with_a_head(teacher: ResponseStates | None, student: ResponseStates) -> ResponseStates | None:
    """A teacher that came without a head is the student's own module and shares its head."""
    if teacher is None or student.head is None or teacher.head is not None:
        return teacher
    assert teacher.rows is not None, "`observe` gives them"
    return replace(teacher, head=replace(student.head, hidden=teacher.rows))


def _jagged(values: Tensor, row_lengths: Tensor) -> Tensor:
    offsets = torch.cat([row_lengths.new_zeros(1), row_lengths.cumsum(0)])
    return torch.nested.nested_tensor_from_jagged(values, offsets)


def _longer(ids: Tensor, teacher_ids: Tensor) -> Tensor:
    """Zeros with the longer length of the two in every row: what verl sizes micro-batches by."""
    row_lengths = torch.maximum(lengths(ids), lengths(teacher_ids))
    return _jagged(torch.zeros(int(row_lengths.sum()), dtype=torch.int64, device=ids.device), row_lengths)


def _teacher_batch(data: TensorDict) -> TensorDict:
    """The teacher's sequences in the form that `prepare_model_inputs` takes."""
    ids = data["teacher_input_ids"]
    row_lengths = lengths(ids)
    starts = row_lengths.cumsum(0) - row_lengths
    positions = torch.arange(int(row_lengths.sum()), device=row_lengths.device)
    positions = positions - torch.repeat_interleave(starts, row_lengths)
    batch = TensorDict(
        {"input_ids": _jagged(flat(ids), row_lengths), "position_ids": _jagged(positions, row_lengths)},
        batch_size=len(row_lengths),
    )
    settings = {
        key: tu.get_non_tensor_data(data=data, key=key, default=None)
        for key in ("use_remove_padding", "pad_mode", "pad_token_id")
    }
    tu.assign_non_tensor(batch, temperature=1.0, **{key: value for key, value in settings.items() if value is not None})
    return batch
