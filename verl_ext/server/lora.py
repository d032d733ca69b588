"""A second LoRA adapter on the student's vLLM server: the moving average of the first.

verl sends one adapter, always under one name, with every weight update. Here the average goes the same way under a name
of its own; a request for the base weights names none of them.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from verl.utils.vllm import TensorLoRARequest
from verl.workers.rollout.base import _ROLLOUT_REGISTRY
from verl.workers.rollout.vllm_rollout import ServerAdapter
from verl.workers.rollout.vllm_rollout.utils import VLLM_LORA_INT_ID, vLLMColocateWorkerExtension
from vllm.lora.request import LoRARequest

AVERAGE = LoRARequest(lora_name="average", lora_int_id=VLLM_LORA_INT_ID + 1, lora_path="average")
"""How a request names the average."""


class AdapterExtension(vLLMColocateWorkerExtension):
    """verl's part of a vLLM worker; what arrives may be the average."""

    # Those of the worker.
    add_lora: Callable[[LoRARequest], bool]
    remove_lora: Callable[[int], bool]

    def update_weights_from_ipc(self, *args: Any, averaged: bool = False, **kwargs: Any) -> None:
        """verl's; `averaged` says that the adapter on its way is not the student's."""
        self._averaged = averaged
        super().update_weights_from_ipc(*args, **kwargs)

    def _update_weights(self, weights: list[tuple[str, Tensor]], peft_config: dict, base_sync_done: bool) -> None:
        if not self._averaged:
            super()._update_weights(weights, peft_config, base_sync_done)
            return
        self.remove_lora(AVERAGE.lora_int_id)
        request = TensorLoRARequest(
            lora_name=AVERAGE.lora_name,
            lora_int_id=AVERAGE.lora_int_id,
            lora_path=AVERAGE.lora_path,
            peft_config=peft_config,
            lora_tensors=dict(weights),
        )
        self.add_lora(request)


class AdapterRollout(ServerAdapter):
    """verl's end of the server in a training worker."""

    average: Callable[[], Any] | None = None
    """Gives names and tensors of the average, as verl gives those of the adapter, on all ranks at once; None where the
    server needs none."""

    async def update_weights(self, weights: Any, *args: Any, **kwargs: Any) -> None:
        """verl's; before the student's adapter goes the average."""
        if self.average is not None and kwargs.get("base_sync_done"):
            # In this order: verl's receiver lets go of the student's adapter when any adapter comes.
            await super().update_weights(self.average(), *args, **kwargs, averaged=True)
        await super().update_weights(weights, *args, **kwargs)


def register() -> None:
    """Make rollouts with `rollout.name=vllm` send the average; call it where verl creates them."""
    _ROLLOUT_REGISTRY["vllm", "async"] = f"{__name__}.{AdapterRollout.__name__}"
