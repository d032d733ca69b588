"""The moving average of a student's weights (EMA): kept beside them, swapped in where it teaches."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


class WeightAverage:
    """Exponential moving average of the trainable parameters in float32, sharded as they are.

    average <- decay * average + (1 - decay) * parameter, starting from the parameters. In bfloat16 a decay of 0.999
    would change nothing: the increment is below half a unit in the last place.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an average is {decay}; it must be in [0, 1)")
        self.module, self.decay = module, decay
        self.shards = {name: shard.detach().float().clone() for name, shard in self._parameters()}

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Name and this rank's part of every trainable parameter."""
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                yield name, parameter.to_local() if isinstance(parameter, DTensor) else parameter

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the parameters, once for every optimiser step."""
        for name, shard in self._parameters():
            average = self.shards[name]
            average.lerp_(shard.to(average), 1 - self.decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The module computes with the average inside; its parameters are bit for bit what they were afterwards."""
        reshard(self.module)
        kept = {}
        with torch.no_grad():
            for name, shard in self._parameters():
                kept[name] = shard.clone()
                shard.copy_(self.shards[name])
        try:
            yield
        finally:
            reshard(self.module)
            with torch.no_grad():
                for name, shard in self._parameters():
                    shard.copy_(kept[name])

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, on the host."""
        return {"decay": self.decay, "shards": {name: shard.cpu() for name, shard in self.shards.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take an average up where it was saved.

        Raises:
            ValueError: it belongs to other parameters, or to another number of ranks.
        """
        found = {name: tuple(shard.shape) for name, shard in state["shards"].items()}
        wanted = {name: tuple(shard.shape) for name, shard in self.shards.items()}
        if found != wanted:
            different = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))
            raise ValueError(
                f"the saved average does not fit the student: {different[0]} is {found.get(different[0])} there and "
                f"{wanted.get(different[0])} here; resume with the same model and number of devices"
            )
        for name, shard in state["shards"].items():
            self.shards[name].copy_(shard)


def reshard(module: nn.Module) -> None:
    """Free gathered parameters, so that the next pass gathers what the shards hold now; FSDP2 keeps its root's."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
