"""Programs that mean harm, run for real. Where a fence failed, none would do any: signals are 0, bombs are small."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from recipe.trd.rewards import sandbox, sandbox_filter
from recipe.trd.rewards.sandbox import SandboxError, SandboxLimits, SandboxOutcome, run

SHORT = SandboxLimits(cpu_s=1, wall_s=1.2, memory_mb=256)
PATIENT = SandboxLimits(cpu_s=10, wall_s=60.0, memory_mb=256)
"""For programs that end by themselves, however busy the machine is."""

COMBINATIONS = [("namespaces", "landlock"), ("landlock",), ("namespaces",), ()]

# Prints, for every line of what it is given, `did it` or the name of the error.
ATTEMPTS = """
import sys
for line in sys.stdin.read().splitlines():
    try:
        exec(line)
        print("did it:", line)
    except BaseException as error:
        print(type(error).__name__)
"""


def attempt(*lines):
    """What each line of a program that goes on after errors came to."""
    result = run(ATTEMPTS, "\n".join(lines), PATIENT)
    assert result.outcome is SandboxOutcome.DONE, result
    return result.stdout.splitlines()


@pytest.fixture(params=COMBINATIONS, ids=lambda layers: "+".join(layers) or "seccomp alone")
def layers(request, monkeypatch):
    """Every combination of fences that a machine may have."""
    missing = set(request.param) - set(sandbox.check())
    if missing:
        pytest.skip(f"this machine has no {missing}")
    monkeypatch.setattr(sandbox, "LAYERS", request.param)
    return request.param


def test_program_reads_its_input_and_prints():
    stdin = "\n".join(map(str, range(200_000)))
    result = run("import sys\nprint(sum(map(int, sys.stdin)), __name__, len(sys.argv))\nexit()", stdin, PATIENT)
    assert (result.outcome, result.stdout, result.reason) == (SandboxOutcome.DONE, "19999900000 __main__ 1\n", "")
    assert result.cpu_s > 0


def test_fences_are_said(layers):
    assert run("", "", PATIENT).layers == (*layers, "seccomp")


def test_text_of_every_kind_passes():
    assert run("print(input())", "é 😀 \x00", PATIENT).stdout == "é 😀 \x00\n"
    assert run("import sys; sys.stdout.buffer.write(b'a\\xff')", "\ud800", PATIENT).stdout == "a\ufffd"
    assert run("print('\ud800')", "", PATIENT).outcome is SandboxOutcome.CRASH


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "import os\nos.close(1); os.close(2)\nwhile True: pass",
        "import sys\nwhile True: sys.stderr.write('x' * 1000)",
        "10 ** 10 ** 9",
    ],
    ids=["loop", "deaf loop", "loop without output", "endless errors", "long operation"],
)
def test_a_program_that_does_not_end_is_ended(program):
    started = time.monotonic()
    result = run(program, "", SHORT)
    assert result.outcome is SandboxOutcome.TIMEOUT
    assert "time" in result.reason
    assert time.monotonic() - started < 20


def test_a_program_that_waits_is_ended_by_wall_time():
    result = run("import time\nprint('started', flush=True)\ntime.sleep(1000)", "", SHORT)
    assert (result.outcome, result.stdout, result.reason) == (SandboxOutcome.TIMEOUT, "started\n", "over its wall time")
    assert result.cpu_s < 1


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("a =", "SyntaxError"),
        ("raise SystemExit(3)", "exit code 3"),
        ("import os\nos._exit(4)", "exit code 4"),
        ("import os\nos.abort()", "SIGABRT"),
        ("import os\nos.kill(os.getpid(), 9)", "SIGKILL"),
        ("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
        ("def f(): f()\nf()", "RecursionError"),
        ("x = bytearray(10 ** 9)", "MemoryError"),
        ("x = []\nfor _ in range(1000): x.append(bytearray(10 ** 6))", "MemoryError"),
        ("import mmap\nx = mmap.mmap(-1, 10 ** 9)", "Cannot allocate memory"),
    ],
)
def test_a_crash_is_a_crash_with_its_reason(program, reason):
    result = run(program, "", PATIENT)
    assert result.outcome is SandboxOutcome.CRASH
    assert reason in result.reason


@pytest.mark.parametrize("ending", ["exit()", "quit(0)", "import sys; sys.exit()", "import os; os._exit(0)"])
def test_leaving_with_success_is_success(ending):
    assert run(f"print(1, flush=True)\n{ending}\nprint(2)", "", PATIENT).stdout == "1\n"


def test_huge_output_ends_the_program_and_is_cut():
    limits = SandboxLimits(cpu_s=10, wall_s=60, output_bytes=100_000)
    for program in ("while True: print('x' * 1000)", "print('x' * 1_000_000)"):
        result = run(program, "", limits)
        assert result.outcome is SandboxOutcome.CRASH
        assert result.reason == "more than 100000 bytes of output"
        assert result.stdout.startswith("xxx")
        assert len(result.stdout) == 100_000


def test_no_process_can_be_started(layers):
    before = set(psutil.pids())
    said = attempt(
        "import os; os.fork()",
        "import os; os.forkpty()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import os; os.system('true') == 0 or 1 / 0",
        "import os; os.execv('/bin/true', ['true'])",
        "import multiprocessing; multiprocessing.Process(target=print).start()",
        "import ctypes; ctypes.CDLL(None).fork() >= 0 or 1 / 0",
        "import ctypes; ctypes.CDLL(None).syscall(435, bytes(88), 88) > 0 or 1 / 0",
    )
    assert [line for line in said if line.startswith("did it")] == []
    assert not [pid for pid in set(psutil.pids()) - before if "sandbox_child" in _command_of(pid)]


def _command_of(pid):
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def test_a_fork_bomb_is_one_process():
    bomb = "import os\ncount = 0\nfor _ in range(4):\n    try: os.fork(); count += 1\n    except OSError: pass\n"
    assert run(bomb + "print(count)", "", PATIENT).stdout == "0\n"


def test_threads_work_up_to_their_limit():
    deep = "def f(n): return n and 1 + f(n - 1)"
    program = f"import sys, threading\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(2 ** 26)\n{deep}\n"
    assert run(program + "t = threading.Thread(target=lambda: print(f(20_000)))\nt.start()", "", PATIENT).stdout
    bomb = "import threading, time\nthreading.stack_size(2 ** 15)\nfor _ in range(200):\n"
    result = run(bomb + "    threading.Thread(target=time.sleep, args=(9,)).start()", "", PATIENT)
    assert (result.outcome, result.reason) == (SandboxOutcome.CRASH, "more than 32 threads")


def test_nobody_else_gets_a_signal(layers):
    me = os.getpid()
    said = attempt(
        f"import os; os.kill({me}, 0)",
        "import os; os.kill(os.getppid(), 0)",
        "import os; os.kill(0, 0)",
        "import os; os.kill(-1, 0)",
        f"import os; os.killpg({os.getpgid(me)}, 0)",
        f"import os, signal; signal.pidfd_send_signal(os.pidfd_open({me}), 0)",
        # The kernel would send the signal when the pipe has something to read.
        f"import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, {me})",
        f"import resource; resource.prlimit({me}, resource.RLIMIT_CORE, (0, 0))",
        f"import os; os.setpriority(os.PRIO_PROCESS, {me}, os.getpriority(os.PRIO_PROCESS, {me}))",
        f"import os; os.sched_setaffinity({me}, os.sched_getaffinity({me}))",
        "import os; os.kill(os.getpid(), 0)",
    )
    assert said[:-1] == ["PermissionError"] * 10
    assert said[-1].startswith("did it")


def test_no_socket_opens(layers, tmp_path):
    with socket.socket(socket.AF_UNIX) as local, socket.create_server(("127.0.0.1", 0)) as server:
        local.bind(str(tmp_path / "socket"))
        local.listen()
        said = attempt(
            f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))",
            f"import socket; socket.socket(socket.AF_UNIX).connect({str(tmp_path / 'socket')!r})",
            "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
            "import socket; socket.socketpair()",
            "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
            "import ctypes; ctypes.CDLL(None).socket(2, 1, 0) >= 0 or 1 / 0",
            "import ctypes; ctypes.CDLL(None).syscall(425, 8, bytes(120)) >= 0 or 1 / 0",
            "import urllib.request; urllib.request.urlopen('http://127.0.0.1')",
        )
        assert [line for line in said if line.startswith("did it")] == []
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_nothing_outside_the_scratch_folder_can_be_changed(layers, tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    file.chmod(0o666)
    folder.mkdir(mode=0o777)
    said = attempt(
        f"open({str(file)!r}, 'w')",
        f"open({str(file)!r}, 'a')",
        f"open({str(file)!r}, 'r+')",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"import os; os.remove({str(file)!r})",
        f"import os; os.rename({str(file)!r}, {str(folder / 'file')!r})",
        f"import os; os.truncate({str(file)!r}, 0)",
        f"import os; os.link({str(file)!r}, {str(folder / 'file')!r})",
        f"import os; os.symlink('/', {str(folder / 'link')!r})",
        f"import os; os.mkdir({str(folder / 'sub')!r})",
        f"import os; os.rmdir({str(folder)!r})",
        f"import os; os.chmod({str(file)!r}, 0)",
        f"import os; os.utime({str(file)!r}, (0, 0))",
        "import os; os.memfd_create('x')",
        "open('/dev/shm/left', 'w')",
        "open('/proc/self/oom_score_adj', 'w')",
        "open('../left', 'w')",
    )
    assert [line for line in said if line.startswith("did it")] == []
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("mine", 0o666)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_scratch_folder_is_small_and_gone_afterwards(layers):
    said = attempt(
        "open('a', 'w').write('kept')",
        "print(open('a').read())",
        "import os; os.remove('a')",
        "f = open('b', 'wb'); [f.write(bytes(2 ** 20)) for _ in range(20)]",
        "for i in range(10_000): open(str(i), 'w')",
        "import os; print(os.getcwd())",
    )
    assert not Path(said[-2]).exists()
    if {"namespaces", "landlock"} <= set(layers):
        assert [said[0], said[1]] == ["did it: open('a', 'w').write('kept')", "kept"]
        assert said[4:6] == ["OSError"] * 2
    else:
        assert said[:1] + said[3:5] == ["PermissionError"] * 3


def test_files_of_the_machine_cannot_be_read(tmp_path):
    if "landlock" not in sandbox.check():
        pytest.skip("this machine has no Landlock")
    (tmp_path / "answers").write_text("42")
    paths = (tmp_path / "answers", "/etc/passwd", "/proc/self/environ", f"/proc/{os.getpid()}/environ", Path.cwd())
    assert attempt(
        *(f"import os; os.listdir({str(p)!r}) if {p == Path.cwd()} else open({str(p)!r})" for p in paths)
    ) == ["PermissionError"] * len(paths)


def test_environment_is_empty(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    names = set(run("import os\nprint(*os.environ)", "", PATIENT).stdout.split())
    expected = {"PATH", "HOME", "TMPDIR", "LANG", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}
    assert names - {"LD_LIBRARY_PATH", "LC_CTYPE"} == expected


def test_installed_packages_can_be_used():
    program = "import numpy as np, decimal, fractions\nprint(int((np.ones((9, 9)) @ np.ones((9, 9))).sum()))"
    assert run(program, "", SandboxLimits(wall_s=60)).stdout == "729\n"


def test_no_rights_are_left(layers):
    # Root's too: no capability, and no way to get one.
    program = "import ctypes\nprint(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))\n"
    program += "header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()\n"
    program += "print(ctypes.CDLL(None).capget(header, data), *data)\n"
    program += "print(*(ctypes.CDLL(None).unshare(flag) for flag in (0x10000000, 0x20000, 0x40000000)))"
    assert run(program, "", PATIENT).stdout == "1\n0 0 0 0 0 0 0\n-1 -1 -1\n"


def test_programs_side_by_side_do_not_mix():
    results = {}

    def square(number):
        results[number] = run("print(int(input()) ** 2)", str(number), PATIENT).stdout

    threads = [threading.Thread(target=square, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: f"{number * number}\n" for number in range(8)}
    assert len(os.listdir("/proc/self/fd")) < 200


def test_nothing_is_left_open():
    opened = os.listdir("/proc/self/fd")
    run("print(1)", "", PATIENT)
    run("import time\ntime.sleep(9)", "", SandboxLimits(wall_s=0.1))
    assert os.listdir("/proc/self/fd") == opened


def test_program_dies_with_the_process_that_started_it(tmp_path):
    caller = "from recipe.trd.rewards import sandbox\nsandbox.run('import time; time.sleep(100)')"
    # What is left over when a caller is killed is an empty folder.
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", caller], env=environment) as process:
        children = []
        deadline = time.monotonic() + 60
        while not children and time.monotonic() < deadline:
            time.sleep(0.05)
            children = [
                child for child in psutil.Process(process.pid).children() if "sandbox_child" in _command_of(child.pid)
            ]
        process.send_signal(signal.SIGKILL)
    assert children
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_a_process_that_ignores_its_children_is_told_so():
    caller = (
        "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "from recipe.trd.rewards import sandbox\nsandbox.run('')"
    )
    done = subprocess.run([sys.executable, "-c", caller], capture_output=True, text=True, check=False)
    assert "SandboxError: how a program ended is unknown, since this process ignores SIGCHLD" in done.stderr


def test_a_machine_that_cannot_fence_programs_in_is_refused(monkeypatch, tmp_path):
    broken = tmp_path / "child.py"
    broken.write_text("raise OSError('no filter of system calls for s390x')")
    monkeypatch.setattr(sandbox, "CHILD", broken)
    with pytest.raises(SandboxError, match=r"(?s)reward\.sandbox_fusion\.url.*no filter of system calls for s390x"):
        run("print(1)")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("writable", [True, False])
def test_filter_refuses_and_allows(machine, writable):
    audit = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    program = sandbox_filter.filter_program(machine, 77, writable=writable)

    def verdict(name, *arguments, audit=audit):
        return _judge(program, audit, sandbox_filter.syscall_number(name, machine), arguments)

    refused, unknown, allowed = 0x50001, 0x50026, 0x7FFF0000
    assert {verdict(name) for name in ("socket", "execve", "ptrace", "unshare", "io_uring_setup")} == {refused}
    assert (verdict("clone", 0x11), verdict("clone", 0x3D0F00), verdict("clone3")) == (refused, allowed, unknown)
    assert (verdict("kill", 77, 9), verdict("kill", 78, 9), verdict("kill", 2**32 - 1, 9)) == (
        allowed,
        refused,
        refused,
    )
    assert (verdict("prlimit64", 0), verdict("prlimit64", 77), verdict("prlimit64", 1)) == (allowed, allowed, refused)
    assert (verdict("fcntl", 3, 1), verdict("fcntl", 3, 8), verdict("ioctl", 3, 0x5401)) == (allowed, refused, allowed)
    assert (verdict("openat", 0, 0, 0), verdict("openat", 0, 0, 0x80000)) == (allowed, allowed)
    writes = [verdict("openat", 0, 0, flags) for flags in (1, 2, 0x40, 0x200)] + [
        verdict("unlinkat"),
        verdict("truncate"),
    ]
    assert set(writes) == {allowed if writable else refused}
    assert _judge(program, audit, 63, ()) == allowed
    assert verdict("socket", audit=0x40000003) == 0x80000000


def test_filter_refuses_the_other_numbers_of_x86_64():
    program = sandbox_filter.filter_program("x86_64", 77, writable=True)
    assert _judge(program, 0xC000003E, 0x40000000 | 41, ()) == 0x50001


def _judge(program, audit, number, arguments):
    """What the kernel's machine for filters makes of a system call."""
    data = {0: number, 4: audit} | {16 + 8 * index: value for index, value in enumerate(arguments)}
    position, loaded = 0, 0
    while True:
        code, if_true, if_false, operand = program[position]
        position += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            loaded = data.get(operand, 0)
        elif code == 0x05:
            position += operand
        else:
            holds = {0x15: loaded == operand, 0x35: loaded >= operand, 0x45: loaded & operand != 0}[code]
            position += if_true if holds else if_false


def test_numbers_of_the_calls_are_the_kernels():
    header = next((p for p in Path("/usr/include").glob("*/asm/unistd_64.h")), None)
    if header is None or os.uname().machine != "x86_64":
        pytest.skip("no kernel headers of x86_64")
    known = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", header.read_text())}
    ours = sandbox_filter._X86_64 | sandbox_filter._ALIKE
    # Older headers lack the newest calls.
    assert {name: number for name, number in ours.items() if known.get(name, number) != number} == {}
    assert len(ours.keys() & known.keys()) > 90


def test_every_name_in_the_filter_is_a_call():
    names = set(f"{sandbox_filter._DENIED} {sandbox_filter._WRITES}".split())
    assert {name for name in names if sandbox_filter.syscall_number(name, "x86_64") is None} == set()
