"""A causal language model that exposes hidden states and output head instead of computing logits.

The head has to be used inside its own forward pass: only there does FSDP hold it unsharded, and only there does
autograd send its gradient back through FSDP.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from verl_ext.divergence import Head

LOGITS_ONLY = ("labels", "logits_to_keep", "output_hidden_states", "output_attentions", "return_dict")
"""Arguments that wrappers such as PEFT's pass on, and that the model without its head does not take."""


@dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """What a causal language model knows before its head.

    last [B, S, d], after the final norm; layers: the output of layer 1 to L, each [B, S, d], the last one after the
    final norm as in Hugging Face's `hidden_states`, or () where nobody asked. with_head(hidden [N, d], f) returns
    f(Head) with these states, called inside the head's forward pass.
    """

    last: Tensor
    layers: tuple[Tensor, ...]
    with_head: Callable[[Tensor, Callable[[Head], Any]], Any]


def expose_hidden_states(model: Any) -> None:
    """Give a Hugging Face causal LM the arguments `consumer` and `with_layers`.

    `model(..., consumer=f)` returns f(HiddenStates) and computes no logits; without a consumer nothing changes. To be
    called before FSDP or PEFT wrap the model.

    Raises:
        RuntimeError: by the model, when its head has been replaced since then: the old one would be used.
    """
    original: Callable = model.forward
    linear: Any = model.get_output_embeddings()
    original_head: Callable = linear.forward

    @functools.wraps(original_head)
    def head_forward(hidden: Tensor, consumer: Callable[[Head], Any] | None = None) -> Any:
        return original_head(hidden) if consumer is None else consumer(_head(model, hidden))

    @functools.wraps(original)
    def forward(
        *args: Any, consumer: Callable[[HiddenStates], Any] | None = None, with_layers: bool = False, **kwargs: Any
    ) -> Any:
        if consumer is None:
            return original(*args, **kwargs)
        if model.get_output_embeddings() is not linear:
            raise RuntimeError(
                f"the output head of {type(model).__name__} was replaced (by an adapter, for example) after it was "
                "prepared for distillation: leave it out of actor_rollout_ref.model.target_modules"
            )
        kwargs = {name: value for name, value in kwargs.items() if name not in LOGITS_ONLY}
        outputs = model.base_model(*args, output_hidden_states=with_layers, **kwargs)
        layers = tuple(outputs.hidden_states[1:]) if with_layers else ()
        return consumer(HiddenStates(last=outputs.last_hidden_state, layers=layers, with_head=linear))

    linear.forward, model.forward = head_forward, forward


def _head(model: Any, hidden: Tensor) -> Head:
    linear: Any = model.get_output_embeddings()
    config = model.config.get_text_config()
    # Gemma caps its logits, Cohere multiplies them, Granite divides them.
    temperature = (getattr(config, "logits_scaling", None) or 1.0) / (getattr(config, "logit_scale", None) or 1.0)
    return Head(
        hidden=hidden,
        weight=linear.weight,
        bias=linear.bias,
        soft_cap=getattr(config, "final_logit_softcapping", None),
        temperature=temperature,
    )


def check_head(module: nn.Module, *, vocab_size: int, device: Any) -> None:
    """Compare logits of `expose_hidden_states` with the model's own on a few tokens; every FSDP rank calls it.

    Raises:
        RuntimeError: the model does something to its logits that its head does not say.
    """
    ids = torch.arange(8, device=device).unsqueeze(0) % vocab_size
    inputs = {"input_ids": ids, "position_ids": torch.arange(8, device=device).unsqueeze(0), "use_cache": False}
    was_training = module.training
    module.eval()
    with torch.no_grad():
        expected = module(**inputs).logits.float().log_softmax(-1)
        found = module(**inputs, consumer=_logits).float().log_softmax(-1)
    module.train(was_training)
    # Total variation: where the next token is open, no single probability shows much.
    error = (expected.exp() - found.exp()).abs().sum(-1).max().item() / 2
    if not error < 0.02:  # bfloat16 rounds logits of size 20 by 0.06
        raise RuntimeError(
            f"{type(module).__name__}: probabilities from hidden states and head differ from the model's own by "
            f"{error:.3f}; this architecture changes its logits in a way that is not known here, so full-vocabulary "
            "divergences would be wrong: use trd.teacher.scorer=generation or prefill with another model, or report it"
        )


def _logits(states: HiddenStates) -> Tensor:
    return states.with_head(states.last, _logits_of_head)


def _logits_of_head(head: Head) -> Tensor:
    logits = nn.functional.linear(head.hidden, head.weight, head.bias)
    if head.soft_cap is not None:
        logits = head.soft_cap * torch.tanh(logits / head.soft_cap)
    return logits / head.temperature
