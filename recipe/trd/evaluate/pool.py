"""Runs functions that may hang, crash or use too much memory in worker processes; each call has a time limit."""

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

MEMORY_LIMIT_BYTES = 8 << 30
"""Address space of a worker: a call that needs more fails, and nothing else on the machine does."""

_STARTUP_S = 120.0
"""For the imports of a new worker, which take long on a busy machine."""

_READY = "ready"


class CallOutcome(StrEnum):
    """How a call ended."""

    DONE = "done"
    TIMEOUT = "timeout"
    CRASHED = "crashed"


@dataclass(frozen=True)
class CallResult:
    """Result of a call; `value` is None unless it is done, `error` says why it crashed."""

    outcome: CallOutcome
    value: Any = None
    error: str = ""


def run(
    function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *, workers: int, timeout_s: float
) -> Iterator[tuple[int, CallResult]]:
    """Call a function many times, in processes of their own.

    Args:
        function: importable by name.
        calls: arguments of each call.
        workers: processes at a time.
        timeout_s: longest time of a call; its worker is then killed and replaced.

    Yields:
        Number of the call and its result, as they end.
    """
    todo = deque(enumerate(calls))
    pool = [_Worker(function) for _ in range(min(workers, len(todo)))]
    try:
        while todo or any(worker.call is not None for worker in pool):
            for worker in pool:
                if worker.call is None and todo:
                    worker.give(*todo.popleft(), timeout_s=timeout_s)
            next_deadline = min(worker.deadline for worker in pool if worker.call is not None)
            wait([worker.pipe for worker in pool], timeout=max(0.0, next_deadline - time.monotonic()))
            for number, worker in enumerate(pool):
                finished = worker.take(timeout_s=timeout_s)
                if finished is not None:
                    yield finished
                    if finished[1].outcome is not CallOutcome.DONE and not worker.alive:
                        pool[number] = _Worker(function)
    finally:
        for worker in pool:
            worker.end()


class _Worker:
    """A process and the call that it runs."""

    def __init__(self, function: Callable[..., Any]):
        context = multiprocessing.get_context("spawn")
        self.pipe, worker_end = context.Pipe()
        self._process: SpawnProcess = context.Process(target=_serve, args=(function, worker_end), daemon=True)
        self._process.start()
        worker_end.close()
        self._ready = False
        self.alive = True
        self.call: int | None = None
        self.deadline = 0.0

    def give(self, number: int, arguments: tuple[Any, ...], *, timeout_s: float) -> None:
        """Start a call. Its time limit counts from when the worker has finished its imports."""
        self.call = number
        self.deadline = time.monotonic() + (timeout_s if self._ready else _STARTUP_S)
        try:
            self.pipe.send(arguments)
        except OSError:
            self.deadline = 0.0

    def take(self, *, timeout_s: float) -> tuple[int, CallResult] | None:
        """The result of the call if it ended or its time limit is over."""
        if self.call is None:
            return None
        try:
            while self.pipe.poll():
                message = self.pipe.recv()
                if message != _READY:
                    return self._ended(CallResult(*message))
                self._ready = True
                self.deadline = time.monotonic() + timeout_s
        except (EOFError, OSError):
            self.end()
            return self._ended(CallResult(CallOutcome.CRASHED, error=f"exit code {self._process.exitcode}"))
        if time.monotonic() < self.deadline:
            return None
        self.end()
        return self._ended(CallResult(CallOutcome.TIMEOUT))

    def _ended(self, result: CallResult) -> tuple[int, CallResult]:
        assert self.call is not None
        number, self.call = self.call, None
        return number, result

    def end(self) -> None:
        """Kill the process."""
        self.alive = False
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(function: Callable[..., Any], pipe: Connection) -> None:
    _limit_memory()
    # Graders print; none of it belongs in the terminal of the evaluation.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    pipe.send(_READY)
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        try:
            message = (CallOutcome.DONE, function(*arguments), "")
        except (Exception, RecursionError) as error:
            message = (CallOutcome.CRASHED, None, f"{type(error).__name__}: {error}"[:200])
        pipe.send(message)


def _limit_memory() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
