"""Entry points of the package: what has to be registered, in which process, and when.

`verl.plugins` imports this module inside `import verl`, in the driver, every Ray actor and every vLLM process that
imports verl. verl swallows an exception of a plug-in, so `recipe.trd.main` asks `is_loaded()` before it starts
anything. `vllm.general_plugins` calls `register_vllm` in vLLM's engine and worker processes.
"""

import os

_loaded = False


def is_cpu_platform() -> bool:
    """True when the user asked for the CPU platform with `VERL_PLATFORM=cpu`."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def is_loaded() -> bool:
    """True when the plug-in ran to its end in this process."""
    return _loaded


def register() -> None:
    """Register the CPU platform where it was asked for; anything else is registered by the process that needs it."""
    global _loaded
    if is_cpu_platform():
        from verl_ext import cpu

        cpu.register()
    _loaded = True


def register_vllm() -> None:
    """Adapt vLLM's engine and worker processes; does nothing unless `VERL_PLATFORM=cpu`."""
    if is_cpu_platform():
        from verl_ext.cpu.vllm_adapters import leave_heads_alone
        from verl_ext.cpu.vllm_weights import keep_unpacked_weights

        keep_unpacked_weights()
        leave_heads_alone()


register()
