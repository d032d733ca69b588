"""A quiet terminal for a Ray run: every line goes to a file, the terminal sees the few that matter.

Ray prints what its workers print on the driver's `sys.stdout` and `sys.stderr`, as `(Actor pid=1) text`. `capture`
replaces these two streams for a while. Nothing private of Ray is needed for that: when another version prints its
lines differently they are still written, classified and shown, but without a known origin; what is not printed through
Python (C code, sub-processes) reaches the terminal unchanged. The one private name that is used, for Ray's merging of
similar lines, is optional.

Shown: lines marked by `show`, errors, whole tracebacks, messages of Ray's own daemons; an error that repeats (on
every rank, in a loop) is shown once. Not shown: the rest, Python warnings included.
"""

import io
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TextIO

MARKER = "[run] "

# Errors that are printed again at the end of a failed run.
_MAX_LAST_ERRORS = 10

# Lines travel from a worker through its log file and Ray's log monitor: this many seconds without one mean that none
# is on its way, even on a loaded machine.
_QUIET_S = 1.0
_MAX_DRAIN_S = 5.0

_DRIVER = "driver"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# Also matches the second prefix that vLLM puts in front of the lines of its own processes.
_ORIGIN = re.compile(r"\((?P<origin>(?:[^()]*? )?pid=\w+(?:, ip=[^)\s]+)?|raylet[^()]*|autoscaler [^()]*)\) ?")
_TRACEBACK = re.compile(
    r"Traceback \(most recent call last\)|^During handling of the above exception|^The above exception was the direct"
)
_ERROR = re.compile(
    r"(?:^|[\s\[(|:])(?:ERROR|CRITICAL|FATAL)\b"
    r"|\b[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b(?:\(|:|\s*$)"
    r"|^(?:Error|error|Fatal Python error)\b|[\s:]error: |\(most recent call first\)"
    r"|^\[[\d\-:, .]+ [EFC] "  # Ray's C++ log: [date time E pid tid]
    r"|^(?:\[rank\d+\]:)?\[?[EF]\d{4} \d\d:"  # torch's log: [E1122 time
    r"|\*\*\* SIG(?:SEGV|ABRT|BUS|FPE|ILL)|Segmentation fault|\b[Oo]ut of memory\b|\bNCCL WARN\b"
)
_WARNING = re.compile(r"Warning\b|\bWARN(?:ING)?\b")
# Looks like an error and is none.
_HARMLESS = re.compile(
    r"^Exception ignored in"  # destructors at interpreter exit
    r"|Failed to establish connection to the (?:event\+)?metrics"  # Ray's metrics agent, off or late
    r"|PYTHON worker processes have been started"  # Ray, when a run has more actors than the machine has cores
    r"|^Tip: use `ray status`"
)
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")


def show(text: str) -> None:
    """Print text, from any process of the run, so that the terminal of the driver shows it.

    Without `capture` in the driver it appears there like any other line, marker included.
    """
    for line in text.splitlines():
        print(f"{MARKER}{line}", flush=True)


@contextmanager
def capture(log_file: Path) -> Iterator[None]:
    """Send the driver's output, with that of all Ray workers, to `log_file` and what matters to the terminal.

    At the end it waits for lines that are on their way, then shuts down Ray if Ray was started inside; what killed
    processes print goes to the file only. An exception gets a note that names the file; the last error lines of the
    workers are printed before it.

    Args:
        log_file: appended to, so that a resumed run keeps its history; folders are created.

    Raises:
        OSError: the file cannot be opened.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    ray_was_up = _ray_is_up()
    with log_file.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as log:
        console = _Console(log=log, stdout=sys.stdout, stderr=sys.stderr)
        with _redirected(console), _without_merging():
            try:
                yield
            except BaseException as error:
                console.drain()
                if isinstance(error, Exception):
                    console.print_failure(log_file)
                error.add_note(f"Everything the run printed: {log_file}")
                raise
            else:
                # Engines that Ray shuts down now report that they died; that goes to the file only.
                console.release()
                console.mute()
                console.drain()
            finally:
                console.mute()
                if _ray_is_up() and not ray_was_up:
                    sys.modules["ray"].shutdown()


@dataclass
class _Block:
    """An error line or traceback of one origin with the lines that continue it."""

    open_traceback: bool
    shown: bool
    lines: list[str] = field(default_factory=list)


@dataclass
class _Console:
    """Decides line by line; called from the threads in which Ray prints, so one lock guards everything."""

    log: TextIO
    stdout: TextIO
    stderr: TextIO
    lock: threading.RLock = field(default_factory=threading.RLock)
    last_line_at: float = field(default_factory=time.monotonic)
    muted: bool = False
    blocks: dict[str, _Block] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    last_errors: deque[str] = field(default_factory=lambda: deque(maxlen=_MAX_LAST_ERRORS))
    num_repeated: int = 0
    warnings: set[str] = field(default_factory=set)

    def feed(self, origin: str, text: str) -> None:
        """Handle one line, without its newline and its origin."""
        self.last_line_at = time.monotonic()
        self._write_log(f"{datetime.now():%H:%M:%S} ({origin}) {text}\n")
        if MARKER in text:
            _print(text.split(MARKER, 1)[1], stream=self.stdout)
        elif not self.muted and not self._continues(origin, text):
            self._classify(origin, text)

    def _classify(self, origin: str, text: str) -> None:
        self.blocks.pop(origin, None)
        if _HARMLESS.search(text):
            return
        if _TRACEBACK.search(text):
            self.blocks[origin] = _Block(open_traceback=True, shown=True, lines=[text])
        elif origin.startswith(("raylet", "autoscaler")):
            # Few, and the only sign of a worker killed for memory or of resources that will never be there.
            self.blocks[origin] = _Block(open_traceback=False, shown=self._emit(origin, [text]))
        elif _is_error(text):
            self.blocks[origin] = _Block(open_traceback=False, shown=self._emit(origin, [text]))
        elif _WARNING.search(text):
            self.warnings.add(_NUMBERS.sub("#", text))

    def _continues(self, origin: str, text: str) -> bool:
        """Whether the line belongs to the error before it; if so, it is handled here."""
        block = self.blocks.get(origin)
        if block is None:
            return False
        is_indented = not text.strip() or text[0].isspace()
        if not block.open_traceback:
            if is_indented and block.shown and text.strip():
                _print(_with_origin(origin, text), stream=self.stderr)
            return is_indented
        # A traceback is held back until the line that names its exception, to recognise repetitions.
        block.lines.append(text)
        if not is_indented and not _TRACEBACK.search(text):
            block.open_traceback = False
            block.shown = self._emit(origin, block.lines)
        return True

    def _emit(self, origin: str, lines: list[str]) -> bool:
        """Show lines unless the same, numbers aside, were shown before. Returns whether they were."""
        key = _NUMBERS.sub("#", "\n".join(lines))
        if key in self.seen:
            self.num_repeated += 1
            return False
        self.seen.add(key)
        for line in lines:
            _print(_with_origin(origin, line), stream=self.stderr)
        # The last line of a traceback is the error.
        self.last_errors.append(_with_origin(origin, lines[-1]))
        return True

    def _write_log(self, line: str) -> None:
        try:
            self.log.write(line)
        except OSError as error:
            # A full disk must neither stop the run nor hide it.
            if not self.muted:
                _print(f"The log file cannot be written ({error}); line: {line.rstrip()}", stream=self.stderr)

    def drain(self) -> None:
        """Wait until no line has come for a moment; then show what was held back."""
        now = time.monotonic()
        deadline, self.last_line_at = now + _MAX_DRAIN_S, now
        while _ray_is_up() and (now := time.monotonic()) < deadline and now - self.last_line_at < _QUIET_S:
            time.sleep(0.05)
        self.release()

    def release(self) -> None:
        """Show tracebacks that were held back for their last line."""
        with self.lock:
            for origin, block in self.blocks.items():
                if block.open_traceback and not self.muted:
                    self._emit(origin, block.lines)
            self.blocks.clear()

    def mute(self) -> None:
        """From now on lines go to the file only, except marked ones."""
        self.muted = True

    def print_failure(self, log_file: Path) -> None:
        """Print the last error lines and the path of the file."""
        errors = [f"  {line:.240}" for line in self.last_errors]
        counts = f"repeated errors ({self.num_repeated}), different warnings ({len(self.warnings)})"
        lines = [
            "-" * 80,
            "The run failed. Last errors that its processes reported:" if errors else "The run failed.",
            *errors,
            f"Not shown: {counts}. They are, with all the rest, in",
            f"  {log_file}",
            "-" * 80,
        ]
        with self.lock:
            for line in lines:
                _print(line, stream=self.stderr)


def _is_error(text: str) -> bool:
    """Whether a line reports an error. Warnings may quote errors and the other way round: the first word decides."""
    error, warning = _ERROR.search(text), _WARNING.search(text)
    if error is None:
        return False
    return warning is None or error.start() <= warning.start()


def _print(line: str, *, stream: TextIO) -> None:
    # A character that the terminal cannot show must not end the thread in which Ray prints.
    encoding = stream.encoding or "utf-8"
    print(line.encode(encoding, "replace").decode(encoding), file=stream, flush=True)


def _with_origin(origin: str, text: str) -> str:
    return text if origin == _DRIVER else f"({origin}) {text}"


class _Stream(io.TextIOBase):
    """Replaces sys.stdout or sys.stderr and passes complete lines to the console."""

    def __init__(self, *, original: TextIO, console: _Console) -> None:
        self._original = original
        self._console = console
        self._unfinished: dict[int, str] = {}
        self._is_open = True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the terminal."""
        return self._original.encoding

    def fileno(self) -> int:
        """Descriptor of the terminal: what a sub-process prints is not captured."""
        return self._original.fileno()

    def flush(self) -> None:
        """Flush the terminal."""
        self._original.flush()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Take a part of a line or several lines; lines of different threads are not mixed."""
        thread = threading.get_ident()
        with self._console.lock:
            if not self._is_open:
                return self._original.write(text)
            *lines, rest = (self._unfinished.pop(thread, "") + text).split("\n")
            if rest:
                self._unfinished[thread] = rest
            self._pass_on(lines)
        return len(text)

    def _pass_on(self, lines: list[str]) -> None:
        # Of a message of several lines only the first has the origin.
        origin = _DRIVER
        for line in lines:
            plain = _ANSI.sub("", line)
            origins = []
            while match := _ORIGIN.match(plain):
                origins.append(match["origin"])
                plain = plain[match.end() :]
            origin = " / ".join(origins) or origin
            # Progress bars overwrite themselves, and what is printed over one follows it on the same line.
            for part in plain.split("\r"):
                if part or not plain:
                    self._console.feed(origin, part)

    def close_down(self) -> None:
        """Print directly from now on: a logging handler may have kept this stream."""
        with self._console.lock:
            self._pass_on([rest for rest in self._unfinished.values() if rest])
            self._is_open = False


@contextmanager
def _redirected(console: _Console) -> Iterator[None]:
    originals = sys.stdout, sys.stderr
    streams = tuple(_Stream(original=original, console=console) for original in originals)
    moved = [
        (handler, handler.stream)
        for handler in _stream_handlers()
        if any(handler.stream is original for original in originals)
    ]
    for handler, original in moved:
        handler.setStream(streams[originals.index(original)])  # type: ignore[arg-type]
    sys.stdout, sys.stderr = streams  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = originals
        for handler, original in moved:
            handler.setStream(original)
        for stream in streams:
            stream.close_down()


def _stream_handlers() -> list[logging.StreamHandler[TextIO]]:
    """Handlers of all loggers that print: they keep the stream that existed when they were created."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers}
    # Handlers whose stream is a property follow sys.stderr by themselves.
    return [handler for handler in handlers if isinstance(handler, logging.StreamHandler) and "stream" in vars(handler)]


@contextmanager
def _without_merging() -> Iterator[None]:
    """Keep Ray from merging similar lines of different workers: lines of tracebacks would be missing."""
    name = "RAY_DEDUP_LOGS"
    ray_logging = sys.modules.get("ray._private.ray_logging")
    if ray_logging is None or not hasattr(ray_logging, name):
        # Ray reads the variable when it is imported.
        os.environ.setdefault(name, "0")
        yield
        return
    before = getattr(ray_logging, name)
    setattr(ray_logging, name, False)
    try:
        yield
    finally:
        setattr(ray_logging, name, before)


def _ray_is_up() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()
