"""Runs generated Python code in isolation: whatever it does costs its own result, never the caller's process.

The code runs in a process of its own (`sandbox_child.py`) with limits on processor time, wall time, memory, output and
threads. It cannot start processes, signal others, use the network or sockets, or see the caller's environment. If it
may write files at all, then only in a small file system of its own that is removed with it. All of this holds for root
and for other users, in worker processes and threads, and without Docker. There are three layers, and a machine needs
only the last one:

    namespaces   no network devices, no shared memory, a file system of its own
    landlock     only Python's and the system's libraries can be read, no other file can be opened
    seccomp      calls for processes, signals and sockets fail; where a layer above is missing, so does all writing

`check()` says which layers this machine has. The sandbox is made for contest solutions, not for attacks on the kernel:
against those, give `reward.sandbox_fusion.url` the address of a service on another machine.
"""

import contextlib
import fcntl
import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

CHILD = Path(__file__).parent / "sandbox_child.py"

LAYERS = ("namespaces", "landlock")
"""Layers that are tried; the filter of system calls is always needed. Tests leave some out."""

_STARTUP_S = 120.0
"""On a busy machine an interpreter may take long to start; the time of the code begins after that."""

_POLL_S = 0.05
_KEPT_ERROR_BYTES = 4096


class SandboxError(RuntimeError):
    """No code can be run here at all; says nothing about the code that was given."""


class SandboxOutcome(StrEnum):
    """How the code ended: by itself with exit code 0, over its time, or in any other way."""

    DONE = "done"
    TIMEOUT = "timeout"
    CRASH = "crash"


@dataclass(frozen=True, kw_only=True)
class SandboxLimits:
    """What the code may use. Memory is address space, of which libraries such as numpy take more than they touch."""

    cpu_s: int = 10
    wall_s: float = 40.0
    memory_mb: int = 1024
    output_bytes: int = 8 << 20
    scratch_mb: int = 16
    num_threads: int = 32


@dataclass(frozen=True)
class SandboxResult:
    """What the code did."""

    outcome: SandboxOutcome
    stdout: str
    """Undecodable bytes are replaced."""
    reason: str
    """Why it did not end by itself: the last line of its errors, a signal, a limit. Empty if it did."""
    cpu_s: float
    layers: tuple[str, ...]
    """The layers that held."""


def run(code: str, stdin: str = "", limits: SandboxLimits | None = None) -> SandboxResult:
    """Run code to its end, or to the first of its limits.

    Args:
        code: Python source, run as `__main__` by this interpreter with the packages that are installed.
        stdin: its standard input, the whole of it.
        limits: what it may use.

    Raises:
        SandboxError: the sandbox itself does not work on this machine.
    """
    limits = limits or SandboxLimits()
    if sys.platform != "linux":
        raise SandboxError(
            f"programs can be fenced in on Linux alone, not on {sys.platform}: set reward.sandbox_fusion.url"
        )
    with tempfile.TemporaryDirectory(prefix="program-", ignore_cleanup_errors=True) as scratch:
        source_fd, stdin_fd = _sealed(code), _sealed(stdin)
        status_fd, child_status_fd = os.pipe()
        try:
            process = subprocess.Popen(
                _command(source_fd, child_status_fd, limits),
                stdin=stdin_fd,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=scratch,
                env=_environment(scratch),
                pass_fds=(source_fd, child_status_fd),
                start_new_session=True,
                bufsize=0,
            )
        except BaseException:
            os.close(status_fd)
            raise
        finally:
            for opened in (source_fd, stdin_fd, child_status_fd):
                os.close(opened)
        return _RunningCode(process, status_fd, limits).result()


@cache
def check() -> tuple[str, ...]:
    """The layers that this machine has.

    Raises:
        SandboxError: it lacks the one that is needed, or code that prints one line does not come to its end.
    """
    result = run("print(input())", "works")
    if result.outcome is not SandboxOutcome.DONE or result.stdout != "works\n":
        raise SandboxError(f"a program that prints one line ended with {result.outcome}: {result.reason}")
    return result.layers


def _sealed(text: str) -> int:
    """File descriptor of a read-only file in memory."""
    # Surrogates come from model output that JSON escaped; the encoding error of the code is its crash.
    opened = os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(opened, "wb", closefd=False) as file:
        file.write(text.encode("utf-8", errors="surrogatepass"))
    os.lseek(opened, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(opened, fcntl.F_ADD_SEALS, seals)
    return opened


def _command(source_fd: int, status_fd: int, limits: SandboxLimits) -> list[str]:
    """The order is `sandbox_child.main`'s."""
    packages = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    libraries = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if path]
    numbers = (os.getpid(), source_fd, status_fd, limits.memory_mb, limits.cpu_s, limits.scratch_mb)
    lists = (LAYERS, libraries, packages)
    interpreter = [sys.executable, "-I", "-S", "-X", "utf8", str(CHILD)]
    return [*interpreter, *map(str, numbers), *map(os.pathsep.join, lists)]


def _environment(scratch: str) -> dict[str, str]:
    """Nothing of the caller's, but the path without which some interpreters find no libraries."""
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"PATH": "/usr/bin:/bin", "HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8"} | one_thread | libraries


class _RunningCode:
    """A process that has just been started; `result` sees it to its end."""

    def __init__(self, process: subprocess.Popen[bytes], status_fd: int, limits: SandboxLimits):
        self._process = process
        self._limits = limits
        self._deadline = time.monotonic() + _STARTUP_S
        self._selector = selectors.DefaultSelector()
        self._read = {"status": bytearray(), "stdout": bytearray(), "stderr": bytearray()}
        self._status_fd = status_fd
        assert process.stdout is not None
        assert process.stderr is not None
        pipes = {"status": status_fd, "stdout": process.stdout.fileno(), "stderr": process.stderr.fileno()}
        for name, pipe in pipes.items():
            os.set_blocking(pipe, False)
            self._selector.register(pipe, selectors.EVENT_READ, name)

    def result(self) -> SandboxResult:
        """Wait, enforce the limits, and return how it ended."""
        limit_hit, ended = "", None
        try:
            while ended is None:
                self._take_output()
                limit_hit = self._limit_hit()
                if limit_hit:
                    self._kill()
                ended = self._reap(block=bool(limit_hit))
            self._drain()
        finally:
            if ended is None:
                self._kill()
                self._reap(block=True)
            os.close(self._status_fd)
            for opened in (self._process.stdout, self._process.stderr, self._selector):
                if opened is not None:
                    opened.close()
        layers = tuple(self._read["status"].decode().split())
        if not layers:
            raise SandboxError(
                "programs cannot be fenced in on this machine; set reward.sandbox_fusion.url to a service that runs "
                f"them: {limit_hit or self._errors()[-500:].strip() or f'it ended with {ended[0]}'}"
            )
        return self._result_of(limit_hit, *ended, layers)

    def _take_output(self) -> None:
        """Read what there is; without output, wait a little."""
        if not self._selector.get_map():
            # It closed its output; its end makes no event, and follows within microseconds as a rule.
            time.sleep(0.001)
            return
        for key, _ in self._selector.select(_POLL_S):
            data = os.read(key.fd, 1 << 16)
            if not data:
                self._selector.unregister(key.fileobj)
                if key.data == "status":
                    self._deadline = time.monotonic() + self._limits.wall_s
                continue
            self._keep(key.data, data)

    def _keep(self, name: str, data: bytes) -> None:
        self._read[name] += data
        if name == "stderr":
            del self._read[name][:-_KEPT_ERROR_BYTES]

    def _drain(self) -> None:
        """What was written before the end and not yet read; its end closed the pipes' other ends."""
        for key in list(self._selector.get_map().values()):
            with contextlib.suppress(BlockingIOError):
                while len(self._read[key.data]) <= self._limits.output_bytes and (data := os.read(key.fd, 1 << 16)):
                    self._keep(key.data, data)

    def _limit_hit(self) -> str:
        if time.monotonic() > self._deadline:
            return "over its wall time"
        if len(self._read["stdout"]) > self._limits.output_bytes:
            return f"more than {self._limits.output_bytes} bytes of output"
        with contextlib.suppress(OSError, IndexError, ValueError):
            # After the name, which may hold anything: state, ..., and as the 18th the number of threads.
            fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(fields[17]) > self._limits.num_threads:
                return f"more than {self._limits.num_threads} threads"
        return ""

    def _kill(self) -> None:
        # Not yet reaped, so the number is still its own, and its group's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _reap(self, *, block: bool) -> tuple[int, float] | None:
        """Exit code, negative for a signal, and processor time in seconds; None while it runs."""
        try:
            pid, status, usage = os.wait4(self._process.pid, 0 if block else os.WNOHANG)
        except ChildProcessError as error:
            raise SandboxError(
                "how a program ended is unknown, since this process ignores SIGCHLD: reset it to SIG_DFL"
            ) from error
        if pid == 0:
            return None
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode, usage.ru_utime + usage.ru_stime

    def _errors(self) -> str:
        return self._read["stderr"].decode("utf-8", errors="replace")

    def _result_of(self, limit_hit: str, exit_code: int, cpu_s: float, layers: tuple[str, ...]) -> SandboxResult:
        last_line = next((line for line in reversed(self._errors().splitlines()) if line.strip()), "")
        # Its output may have ended in the same moment as itself.
        limit_hit = limit_hit or self._limit_hit_by_output()
        if limit_hit:
            outcome = SandboxOutcome.TIMEOUT if "wall time" in limit_hit else SandboxOutcome.CRASH
            reason = limit_hit
        elif exit_code == -signal.SIGXCPU or (exit_code and cpu_s >= self._limits.cpu_s):
            outcome, reason = SandboxOutcome.TIMEOUT, "over its processor time"
        elif exit_code:
            outcome = SandboxOutcome.CRASH
            reason = signal.Signals(-exit_code).name if exit_code < 0 else last_line or f"exit code {exit_code}"
        else:
            outcome, reason = SandboxOutcome.DONE, ""
        kept = self._read["stdout"][: self._limits.output_bytes]
        return SandboxResult(outcome, kept.decode("utf-8", errors="replace"), reason[:500], cpu_s, layers)

    def _limit_hit_by_output(self) -> str:
        too_much = len(self._read["stdout"]) > self._limits.output_bytes
        return f"more than {self._limits.output_bytes} bytes of output" if too_much else ""
