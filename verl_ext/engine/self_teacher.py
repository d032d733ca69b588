"""The student as its own teacher, in the student's own FSDP module: no second set of base weights."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from tensordict import TensorDict

from verl_ext.engine.distillation import DistillationEngine
from verl_ext.engine.ema import WeightAverage
from verl_ext.engine.observe import ResponseStates, Then, Wanted, observe


class SelfTeacher:
    """`live`: the student as it is; `frozen`: with its adapters off; `ema`: with the average of its weights."""

    def __init__(self, engine: DistillationEngine, *, average: WeightAverage | None, without_adapters: bool) -> None:
        self.engine, self.average, self.without_adapters = engine, average, without_adapters

    def observe(self, data: TensorDict, wanted: Wanted, *, then: Then) -> Any:
        """See `observe.observe`.

        The head is the student's, in the student's pass, unless the average has one of its own: that is copied out of
        the pass, [V, d] in the dtype of the forward pass.
        """
        own_head = wanted.with_head and self.average is not None and not self.engine.model_config.lora_rank
        module = self.engine.module
        was_training = module.training
        module.eval()
        with self._weights():
            states = observe(self.engine, data, replace(wanted, with_head=own_head), then=_kept)
        module.train(was_training)
        return then(states)

    def _weights(self) -> AbstractContextManager:
        if self.average is not None:
            return self.average.swapped_in()
        return self.engine.disable_adapter() if self.without_adapters else nullcontext()


def _kept(states: ResponseStates) -> ResponseStates:
    """The states with a copy of the head, which FSDP is about to free."""
    if states.head is None:
        return states
    bias = None if states.head.bias is None else states.head.bias.detach().clone()
    return replace(states, head=replace(states.head, weight=states.head.weight.detach().clone(), bias=bias))
