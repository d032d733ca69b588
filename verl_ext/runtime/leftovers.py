"""Cleans up: processes that are left at the end of a run, shared memory of runs that crashed."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

RUN_ID = "VERL_EXT_RUN_ID"
"""Environment variable that every process of a run inherits."""

SHARED_MEMORY = ("verl_weights_*", "psm_*")
"""Weights on their way to a rollout server (verl), and vLLM's queues between engine and worker (named by Python)."""

MIN_AGE_S = 60.0
"""A younger segment without a mapping may be mapped in a moment."""


@contextmanager
def process_guard() -> Iterator[None]:
    """Mark every process that is started inside, and end those that are left afterwards, on this machine.

    Ray ends its workers; engines that its workers started outlive one that was killed.
    """
    run_id = os.environ[RUN_ID] = uuid.uuid4().hex
    began = time.time()
    try:
        yield
    finally:
        _end_marked(run_id)
        del os.environ[RUN_ID]
        remove_stale_shared_memory(min_age_s=0.0, since=began)


def end_processes() -> None:
    """End those now that were started inside the guard, and go on."""
    _end_marked(os.environ[RUN_ID])


def _end_marked(run_id: str, *, patience_s: float = 5.0) -> None:
    deadline = time.monotonic() + patience_s
    while processes := _marked(run_id):
        for process in processes:
            with _ignore_gone():
                process.terminate() if time.monotonic() < deadline else process.kill()
        psutil.wait_procs(processes, timeout=1.0)


def _marked(run_id: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with _ignore_gone():
            if process.pid != os.getpid() and process.environ().get(RUN_ID) == run_id:
                found.append(process)
    return found


def _ignore_gone() -> suppress:
    """A process may end while it is looked at, or belong to somebody else."""
    return suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


def remove_stale_shared_memory(
    folder: Path = Path("/dev/shm"), *, min_age_s: float = MIN_AGE_S, since: float = 0.0
) -> list[Path]:
    """Remove this user's segments of verl and vLLM that no living process has mapped: a crashed run left them.

    Args:
        folder: where POSIX shared memory lies.
        min_age_s: younger segments stay, s.
        since: segments from before that Unix time stay.

    Returns:
        What was removed.
    """
    candidates = {
        path
        for pattern in SHARED_MEMORY
        for path in folder.glob(pattern)
        if _is_from_user(path, since, time.time() - min_age_s)
    }
    in_use = _mapped_files() if candidates else set()
    stale = sorted(path for path in candidates if str(path) not in in_use)
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def _is_from_user(path: Path, since: float, until: float) -> bool:
    """Whether the file is this user's and was last written between these Unix times."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return status.st_uid == os.getuid() and since <= status.st_mtime <= until


def _mapped_files() -> set[str]:
    """Every file that some process has mapped, as far as this user may look."""
    mapped: set[str] = set()
    for process in psutil.process_iter():
        with _ignore_gone():
            mapped.update(entry.path for entry in process.memory_maps(grouped=False))
    return mapped
