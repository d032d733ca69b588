"""Comparison of two answers with a limit on its time and memory: a single boxed answer must never hold a run.

math-verify simplifies symbolically, and some answers keep it busy for ever (binomials of large numbers, powers of
powers, products of expansions). Each process has one child that compares; it is started at the first answer that needs
it, killed when an answer takes too long, and then started again.
"""

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time

LIMIT_S = 5.0
"""Longest time for one pair, after which the answers count as different."""
START_LIMIT_S = 60.0
"""Longest time for the child to start, in which it imports sympy."""

_lock = threading.Lock()
_child: subprocess.Popen | None = None
_owner = 0


def is_equal(pred: str, ground_truth: str, *, limit_s: float = LIMIT_S) -> bool:
    """Whether two answers are equal by `math_equality.is_equal`; False where that cannot be told in time.

    Args:
        pred: the answer of a response.
        ground_truth: the right one.
        limit_s: seconds.
    """
    with _lock:
        child = _started()
        verdict = _ask(child, [pred, ground_truth], limit_s)
        if verdict is None:
            stop()
        return verdict == "1"


def _started() -> subprocess.Popen:
    """The child of this process, warm."""
    global _child, _owner
    # A process that was forked off has no child of its own yet.
    if _child is None or _owner != os.getpid() or _child.poll() is not None:
        _child, _owner = _start(), os.getpid()
        if _ask(_child, ["1", "1.0"], START_LIMIT_S) is None:
            stop()
            raise RuntimeError(
                "the process that compares answers does not start: python -m recipe.trd.rewards.math_child"
            )
    return _child


def _start() -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-m", "recipe.trd.rewards.math_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


def _ask(child: subprocess.Popen, pair: list[str], limit_s: float) -> str | None:
    """The child's answer; None when it takes too long or has died."""
    assert child.stdin is not None, "it is a pipe"
    assert child.stdout is not None, "it is a pipe"
    deadline = time.monotonic() + limit_s
    try:
        child.stdin.write(json.dumps(pair).encode() + b"\n")
        child.stdin.flush()
    except OSError:
        return None
    answer = b""
    while not answer.endswith(b"\n"):
        ready, _, _ = select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))
        found = os.read(child.stdout.fileno(), 16) if ready else b""
        if not found:
            return None
        answer += found
    return answer.decode().strip()


@atexit.register
def stop() -> None:
    """Kill the child; the next comparison starts another."""
    global _child
    child, _child = _child, None
    if child is None or _owner != os.getpid():
        return
    with contextlib.suppress(OSError):
        child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
