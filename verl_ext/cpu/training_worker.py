"""What a training worker needs when it joins its process group."""

from typing import Any

import verl.utils.distributed as distributed


def register() -> None:
    """Replace verl's Ray initialiser by one for gloo.

    verl composes `cpu:gloo,<device>:<backend>`; with the device "cpu" torch refuses the duplicate. The workers import
    the function by name, so this has to run before `verl.workers.engine_workers` is imported, as a verl plug-in does.
    Every training worker calls it once, before its first weight transfer, which is where the transfer gets its time
    limit.
    """
    original = distributed.initialize_global_process_group_ray

    def initialize_global_process_group_ray(timeout_second: int | None = None, backend: str | None = None) -> Any:
        from verl_ext.cpu import weight_transfer

        weight_transfer.limit_waits()
        return original(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    distributed.initialize_global_process_group_ray = initialize_global_process_group_ray
