"""Ends a run whose servers died. Without it verl waits forever for samples or weights."""

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


class Watchdog:
    """A thread that asks every server for its health, and ends this process when one is dead."""

    def __init__(self, *, interval_s: float, servers: Callable[[], list[Any]]) -> None:
        """Start watching.

        Args:
            interval_s: pause between two rounds, s.
            servers: returns the handles of verl's server actors that are up.
        """
        self._interval_s = interval_s
        self._servers = servers
        self._stopped = threading.Event()
        self._silent: dict[Any, int] = {}
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching, before the servers are taken down on purpose."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self.look()

    def look(self) -> None:
        """Check every server now; ends this process when one is dead."""
        for server in self._servers():
            reason = self._ask(server)
            if reason and not self._stopped.is_set():
                self._end_run(reason)

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

    def _end_run(self, reason: str) -> None:
        show(
            f"ERROR a vLLM server died: {reason}. The run ends here; start it again with the same command, it "
            "resumes from its last checkpoint"
        )
        # The main thread may be blocked in native code, so no exception would reach it.
        os._exit(1)
