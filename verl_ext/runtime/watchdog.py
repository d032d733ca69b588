"""Ends a run whose processes died and cannot be replaced. Without it verl waits forever for samples or weights."""

import os
import threading
from collections.abc import Callable
from typing import Any

import ray

from verl_ext.runtime.console import show

MAX_SILENT_CHECKS = 6
"""A busy server may not answer in time; one that misses this many checks in a row hangs."""


def _engine_error(server: Any) -> str | None:
    """Runs inside the server's actor: why its engine cannot go on, or None."""
    engine = getattr(server, "engine", None)
    if engine is not None and engine.errored:
        return str(engine.dead_error)
    return None


def _alive(worker: Any) -> None:
    """Runs inside a worker's actor."""


class Watchdog:
    """A thread that asks every server and worker for its health, and ends this process when one is dead."""

    def __init__(
        self,
        *,
        interval_s: float,
        servers: Callable[[], list[Any]],
        workers: Callable[[], list[Any]] = list,
        replace: Callable[[Any, str], bool] = lambda server, reason: False,
    ) -> None:
        """Start watching.

        Args:
            interval_s: pause between two rounds, s.
            servers: returns the handles of verl's server actors that are up.
            workers: returns the handles of other actors that have to live; they may be silent for as long as they work.
            replace: puts another server in the place of a dead one, given with what it died of; False when it cannot.
        """
        self._interval_s = interval_s
        self._servers, self._workers, self._replace = servers, workers, replace
        self._stopped = threading.Event()
        self._silent: dict[Any, int] = {}
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching, before the servers are taken down on purpose."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self.look(may_replace=True)

    def look(self, *, may_replace: bool = False) -> None:
        """Check every server and worker now; ends this process when one is dead and is not replaced."""
        for server in self._servers():
            reason = self._ask(server)
            if reason and not self._stopped.is_set() and not (may_replace and self._replace(server, reason)):
                self._end_run(f"a vLLM server died: {reason}")
        for worker in self._workers():
            if self._is_gone(worker) and not self._stopped.is_set():
                self._end_run(f"a worker died ({worker!r})")

    def _ask(self, server: Any) -> str | None:
        try:
            reason = ray.get(server.__ray_call__.remote(_engine_error), timeout=self._interval_s)
        except ray.exceptions.GetTimeoutError:
            self._silent[server] = self._silent.get(server, 0) + 1
            silent_s = self._silent[server] * 2 * self._interval_s
            return f"no answer for {silent_s:.0f} s" if self._silent[server] >= MAX_SILENT_CHECKS else None
        except ray.exceptions.RayError as error:
            return f"its process is gone ({type(error).__name__})"
        self._silent.pop(server, None)
        return reason

    def _is_gone(self, worker: Any) -> bool:
        try:
            ray.get(worker.__ray_call__.remote(_alive), timeout=self._interval_s)
        except ray.exceptions.RayError as error:
            # Silence (GetTimeoutError) is work; only a process that is gone counts.
            return isinstance(error, ray.exceptions.RayActorError)
        return False

    def _end_run(self, reason: str) -> None:
        show(f"ERROR {reason}. The run goes on from its last checkpoint: by itself, or with the same command")
        # The main thread may be blocked in native code, so no exception would reach it.
        os._exit(1)
