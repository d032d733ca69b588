"""verl's FSDP engine with a loss on hidden states, and the frozen teacher that computes beside it.

The student's forward pass runs inside the teacher's: at that moment FSDP holds both heads unsharded, and the loss has
everything it needs without a copy. Only states of response tokens reach a head.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.utils.metric import Metric
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from verl_ext.engine.causal_lm import expose_hidden_states
from verl_ext.engine.observe import ResponseStates, Then, Wanted, at_responses, observe
from verl_ext.engine.positions import ResponsePositions, flat, jagged, lengths, response_positions
from verl_ext.engine.probe import Probe, measure

VENDOR = "verl_ext"
"""Value of VERL_ENGINE_VENDOR under which verl finds these engines."""

FROZEN = "frozen_language_model"
"""verl's `model_type` of the teacher."""

_REGISTER = {"backend": ["fsdp", "fsdp2"], "device": ["cuda", "npu"], "vendor": VENDOR}


class Average(Protocol):
    """An average of weights (ema.py)."""

    def update(self) -> None:
        """Once for every optimiser step."""


class Teacher(Protocol):
    """Who reads `teacher_input_ids`: another engine, or the student's own module (self_teacher.py)."""

    def observe(self, data: TensorDict, wanted: Wanted, *, then: Then) -> Any:
        """See `observe.observe`; states without a head are those of the student's own module."""


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
    probe_ids: list[int] | None = None
    """Tokens whose log-probs are measured after every optimiser step, while the weights are on the device."""
    probe: Probe | None = None
    """What was measured last."""

    def optimizer_step(self) -> float:
        """verl's step; the average and the probe follow it."""
        grad_norm = super().optimizer_step()
        # verl skips an update whose gradient is not finite; the average then has nothing to follow.
        if self.average is not None and math.isfinite(grad_norm):
            self.average.update()
        # Attention over slices of sequences (Ulysses) cannot read one that is whole on each rank.
        if self.probe_ids is not None and not self.use_ulysses_sp:
            self.probe = measure(self, self.probe_ids)
        return grad_norm

    def _build_module(self) -> torch.nn.Module:
        module = super()._build_module()
        expose_hidden_states(module)
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
        """Loss of one micro-batch with its graph, and what verl collects of it.

        1. Student: its inputs, and what the loss wants to see of both models (`Wanted`).
        2. Teacher: `observe` runs its sequence and, with its head unsharded, calls the student's pass.
        3. Hidden states: the student's pass, up to the states at response tokens (`at_responses`).
        4. Loss: inside the pass of the student's head, where both heads are unsharded and none is copied.
        5. Backward: by verl, on the loss that is returned.
        """
        if loss_function is None:
            return super().forward_step(micro_batch, loss_function, forward_only)
        data, inputs = self._student_inputs(micro_batch)
        predicting, at_token = (self._positions(data, inputs["input_ids"], shift=shift) for shift in (-1, 0))
        wanted = Wanted(
            tokens=predicting.token,
            layer_tokens=at_token.token,
            with_head=self.with_head,
            with_layers=self.with_layers,
        )

        def loss_of(student: ResponseStates, teacher: ResponseStates | None) -> dict[str, Any]:
            loss, metrics = loss_function(
                model_output={"student": student, "teacher": _with_a_head(teacher, student)},
                data=data,
                dp_group=self.get_data_parallel_group(),
            )
            return {"loss": loss, "metrics": metrics}

        def student_pass(teacher: ResponseStates | None) -> dict[str, Any]:
            consumer = partial(
                at_responses,
                wanted=wanted,
                predicting=predicting.position,
                layer_positions=at_token.position,
                then=partial(loss_of, teacher=teacher),
            )
            with torch.set_grad_enabled(not forward_only), self.autocast():
                return self.module(**inputs, use_cache=False, consumer=consumer, with_layers=wanted.with_layers)

        output = student_pass(None) if self.teacher is None else self.teacher.observe(data, wanted, then=student_pass)
        return output["loss"], self._report(**output)

    def _student_inputs(self, micro_batch: TensorDict) -> tuple[TensorDict, dict[str, Any]]:
        """The micro-batch on the device, and the arguments of the student's forward pass."""
        data = micro_batch.to(get_device_id())
        if "student_input_ids" in data:
            data["input_ids"] = data["student_input_ids"]
        # Gradients are averaged over all ranks, also over those that hold slices of the same sequences.
        tu.assign_non_tensor(data, dp_size=data["dp_size"] * self.ulysses_sequence_parallel_size)
        inputs, _ = self.prepare_model_inputs(micro_batch=data)
        return data, inputs

    def autocast(self) -> torch.autocast:
        """The precision of this engine's forward passes, whatever the surrounding one is."""
        return torch.autocast(
            device_type=get_device_name(), dtype=self._autocast_dtype, enabled=self._autocast_dtype != torch.float32
        )

    def _positions(self, data: TensorDict, model_ids: Tensor, *, shift: int) -> ResponsePositions:
        packed = tu.get_non_tensor_data(data=data, key="use_remove_padding", default=True)
        return response_positions(
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
            gathered: list[Any] = [None] * self.ulysses_sequence_parallel_size
            dist.all_gather_object(gathered, metrics, group=self.ulysses_parallel_group)
            metrics = {
                name: Metric(metric.aggregation, Metric.aggregate_dp([others[name] for others in gathered]))
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

    def observe(self, data: TensorDict, wanted: Wanted, *, then: Then) -> Any:
        """See `observe.observe`."""
        self.module.eval()
        return observe(self, data, wanted, then=then)


def _with_a_head(teacher: ResponseStates | None, student: ResponseStates) -> ResponseStates | None:
    """A teacher that came without a head is the student's own module and shares its head."""
    if teacher is None or student.head is None or teacher.head is not None:
        return teacher
    return replace(teacher, head=replace(student.head, hidden=teacher.hidden))


def _longer(ids: Tensor, teacher_ids: Tensor) -> Tensor:
    """Zeros with the longer length of the two for every sample: what verl sizes micro-batches by."""
    sample_lengths = torch.maximum(lengths(ids), lengths(teacher_ids))
    return jagged(torch.zeros(int(sample_lengths.sum()), dtype=torch.int64, device=ids.device), sample_lengths)
