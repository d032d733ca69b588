"""Nothing stays behind: processes at the end of a run, shared memory of one that crashed."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

RUN_ID = "VERL_EXT_RUN_ID"
"""Environment variable that every process of a run inherits."""

SHARED_MEMORY = "verl_weights_*"
"""What verl calls the buffers in which weights travel to a rollout server."""


@contextmanager
def process_guard() -> Iterator[None]:
    """Mark every process that is started inside, and end those that are still there afterwards, on this machine.

    Ray ends its workers; engines that its workers started outlive one that was killed.
    """
    run_id = os.environ[RUN_ID] = uuid.uuid4().hex
    try:
        yield
    finally:
        _end_marked(run_id)
        del os.environ[RUN_ID]


def _end_marked(run_id: str, *, patience_s: float = 5.0) -> None:
    deadline = time.monotonic() + patience_s
    while processes := _marked(run_id):
        for process in processes:
            with _gone_is_fine():
                process.terminate() if time.monotonic() < deadline else process.kill()
        psutil.wait_procs(processes, timeout=1.0)


def _marked(run_id: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with _gone_is_fine():
            if process.pid != os.getpid() and process.environ().get(RUN_ID) == run_id:
                found.append(process)
    return found


def _gone_is_fine() -> suppress:
    """A process may end while it is looked at, or belong to somebody else."""
    return suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


def remove_stale_shared_memory(folder: Path = Path("/dev/shm")) -> list[Path]:
    """Remove weight buffers that no living process has mapped.

    Args:
        folder: where POSIX shared memory lies.

    Returns:
        What was removed.
    """
    candidates = set(folder.glob(SHARED_MEMORY)) if folder.is_dir() else set()
    in_use = _mapped_files() if candidates else set()
    stale = sorted(path for path in candidates if str(path) not in in_use)
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def _mapped_files() -> set[str]:
    mapped: set[str] = set()
    for process in psutil.process_iter():
        with _gone_is_fine():
            mapped.update(entry.path for entry in process.memory_maps(grouped=False))
    return mapped
