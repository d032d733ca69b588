"""Prompt log-probs of several requests beside LoRA adapters, which vLLM's CPU operators cannot add to the head."""

from typing import Any

from torch import Tensor


def only_to_an_adapted_head(original: Any) -> Any:
    """vLLM's `add_lora_logits` where some adapter changes the output head; nothing where none does.

    vLLM looks adapters up by sampled token, of which a request has one, and the rows of its prompt are many: the shapes
    do not fit, and the engine dies. An adapter that leaves the head alone has zeros there: nothing is to be added.
    """

    def add_lora_logits(
        self: Any,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Tensor,
        lora_b_stacked: Tensor,
        scale: float,
        *,
        buffer: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        if lora_b_stacked.any():
            original(self, y, x, lora_a_stacked, lora_b_stacked, scale, buffer=buffer, **kwargs)

    return add_lora_logits


def leave_heads_alone() -> None:
    """Replace vLLM's method in this process; safe to call again."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    PunicaWrapperCPU.add_lora_logits = only_to_an_adapted_head(PunicaWrapperCPU.add_lora_logits)
