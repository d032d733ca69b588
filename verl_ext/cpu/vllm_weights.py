"""vLLM's CPU kernels pack a linear layer's weight and drop the original; a server that is updated must keep it."""

import torch
import torch.nn.functional as F


def keep_weight(layer: torch.nn.Module, remove_weight: bool = True) -> None:
    """Stand-in for vLLM's `dispatch_cpu_unquantized_gemm`: multiply with the live weight, pack nothing.

    Args:
        layer: a vLLM linear or embedding layer with `weight` [out, in].
        remove_weight: ignored; part of vLLM's signature.
    """
    layer.cpu_linear = lambda x, weight, bias: F.linear(x, weight, bias)


def keep_unpacked_weights() -> None:
    """Replace vLLM's dispatcher in this process. Its callers look it up in the module at call time."""
    import vllm.model_executor.layers.utils as layer_utils

    layer_utils.dispatch_cpu_unquantized_gemm = keep_weight
