import io
import logging
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from verl_ext.runtime import console

ROOT = Path(__file__).parents[4]

# What a healthy OPD run of verl 0.9.1 on CPU printed: none of it is for the terminal.
NOISE = r"""
(pid=4111) INFO:2026-11-22 08:05:34,871:Platform override from VERL_PLATFORM: cpu
(pid=4111) /x/engine/__init__.py:60: UserWarning: mindspeed engine is not available: ModuleNotFoundError("No megatron")
(pid=4111)   warnings.warn(f"mindspeed engine is not available: {e!r}", stacklevel=1)
(vLLMHttpServer pid=6060) (EngineCore pid=6525) WARNING 11-22 08:14:01 [vllm.py:652] Model Runner V2 requires Triton.
(vLLMHttpServer pid=6060) [W1122 08:13:57.098781738 utils.cpp:68] Warning: NUMA binding: Using MEMBIND policy.
(WorkerDict pid=5533) [rank0]:W1122 08:13:20.572000 5533 torch/fx/_symbolic_trace.py:56] is_fx_tracing will return true.
(SimpleStorageUnit pid=5459) 2026-11-22 08:15:18,801 - WARNING - transfer_queue.utils.common - target_num_threads 8.
(raylet) WARNING: 8 PYTHON worker processes have been started on node: b2656daa with address: 192.0.2.2, which is 4x.
(TaskRunnerV1 pid=5368)  'rollout_is_threshold': None,
(TaskRunnerV1 pid=5368) step:1 - global_seqlen/min:448.0 - actor/pg_loss:0.0 - perf/mfu/actor:0.0
2026-11-22 08:05:28,607	INFO worker.py:2029 -- Started a local Ray instance. View the dashboard at 127.0.0.1:8265
ray init kwargs: {'num_cpus': 32}
"""


@pytest.fixture
def terminal_after(capsys, tmp_path):
    """What the terminal shows, (stdout, stderr), when the driver prints a text."""

    def run(text: str) -> tuple[str, str]:
        with console.capture(tmp_path / "log.txt"):
            print(textwrap.dedent(text).strip("\n"))
        return tuple(capsys.readouterr())

    return run


def run_and_fail(log_file: Path, *, text: str) -> None:
    with console.capture(log_file):
        print(text)
        raise ValueError("driver")


def test_marked_line_reaches_stdout_without_marker_and_origin(terminal_after, tmp_path):
    out, err = terminal_after(f"\x1b[36m(Trainer pid=7)\x1b[0m {console.MARKER}step 1/2")
    assert (out, err) == ("step 1/2\n", "")
    assert re.fullmatch(r"\d\d:\d\d:\d\d \(Trainer pid=7\) \[run\] step 1/2\n", (tmp_path / "log.txt").read_text())


def test_show_marks_every_line(capsys):
    console.show("one\ntwo")
    assert capsys.readouterr().out == "[run] one\n[run] two\n"


def test_noise_of_a_healthy_run_is_only_in_the_file(terminal_after, tmp_path):
    assert terminal_after(NOISE) == ("", "")
    assert len((tmp_path / "log.txt").read_text().splitlines()) == len(NOISE.strip().splitlines())


@pytest.mark.parametrize(
    "line",
    [
        "ValueError: bad batch",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "ERROR 11-22 08:15:08 [core.py:842] EngineCore failed to start.",
        "ERROR:2026-11-22 08:15:08,100:no such file",
        "[2026-11-22 08:05:28,607 E 4111 4200] core_worker.cc:500: lost the raylet",
        "[rank0]:[E1122 08:15:08.1 ProcessGroupNCCL.cpp:616] Watchdog caught collective operation timeout",
        "node1:77:99 [0] misc/socket.cc:50 NCCL WARN socketStartConnect: Connect to 192.0.2.3 failed",
        "Fatal Python error: Segmentation fault",
        "AssertionError",
        "Stack (most recent call first):",
        "ERROR 11-22 08:15:08 [core.py:842] UserWarning raised as an error",
    ],
)
def test_error_lines_are_shown_with_their_origin(terminal_after, line):
    assert terminal_after(f"(WorkerDict pid=7) {line}") == ("", f"(WorkerDict pid=7) {line}\n")


def test_messages_of_rays_daemons_are_shown(terminal_after):
    text = "(autoscaler +9s) Warning: The following resource request cannot be scheduled right now: {'GPU': 8.0}"
    assert terminal_after(text)[1] == text + "\n"


def test_whole_traceback_is_shown_though_another_worker_prints_in_between(terminal_after):
    text = """
        (A pid=1) Traceback (most recent call last):
        (A pid=1)   File "x.py", line 1, in f
        (B pid=2) all is well
        (A pid=1)     raise ValueError("no")
        (A pid=1) ValueError: no
        (A pid=1)   Field required
        (A pid=1) carrying on
    """
    lines = textwrap.dedent(text).strip().splitlines()
    assert terminal_after(text)[1].splitlines() == [line for i, line in enumerate(lines) if i not in (2, 6)]


def test_chained_traceback_stays_connected(terminal_after):
    text = """
        Traceback (most recent call last):
          File "x.py", line 1, in f
        KeyError: 'a'

        During handling of the above exception, another exception occurred:

        Traceback (most recent call last):
          File "x.py", line 3, in f
        RuntimeError: b
    """
    shown = terminal_after(text)[1]
    assert [line for line in shown.splitlines() if line] == [
        line for line in textwrap.dedent(text).strip().splitlines() if line
    ]


def test_same_error_of_every_rank_is_shown_once_and_counted(capsys, tmp_path):
    lines = ["Traceback (most recent call last):", '  File "x.py", line 1, in f', "KeyError: 'rank {pid}'"]
    text = "\n".join(f"(WorkerDict pid={pid}) {line.format(pid=pid)}" for pid in range(4) for line in lines)
    with pytest.raises(ValueError, match="driver"):
        run_and_fail(tmp_path / "log.txt", text=text)
    err = capsys.readouterr().err
    assert err.count("KeyError") == 2  # as it happened and in the list at the end
    assert "repeated errors (3)" in err
    assert (tmp_path / "log.txt").read_text().count("KeyError") == 4


def test_unfinished_traceback_is_shown_at_the_end(terminal_after):
    text = '(A pid=1) Traceback (most recent call last):\n(A pid=1)   File "x.py", line 1, in f'
    assert terminal_after(text)[1] == text + "\n"


def test_failure_lists_errors_and_log_and_lets_the_exception_pass(capsys, tmp_path):
    log_file = tmp_path / "run" / "log.txt"
    with pytest.raises(ValueError, match="driver") as caught:
        run_and_fail(log_file, text="(A pid=1) KeyError: 'x'")
    assert caught.value.__notes__ == [f"Everything the run printed: {log_file}"]
    err = capsys.readouterr().err
    assert "  (A pid=1) KeyError: 'x'\n" in err
    assert str(log_file) in err


def test_progress_bar_does_not_hide_what_follows_on_its_line(terminal_after):
    assert terminal_after("(A pid=1) 10%|#\r20%|##\rValueError: no")[1] == "(A pid=1) ValueError: no\n"


def test_python_logging_goes_to_the_file_and_back(capsys, tmp_path):
    logger = logging.getLogger("verl_ext.test_console")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)  # vLLM raises the root's to ERROR when a test imports it
    before = sys.stdout, sys.stderr
    with console.capture(tmp_path / "log.txt"):
        logger.warning("quiet please")
    logger.warning("aloud")
    logger.removeHandler(handler)
    assert "quiet please" in (tmp_path / "log.txt").read_text()
    assert capsys.readouterr().err == "aloud\n"
    assert (sys.stdout, sys.stderr) == before


def test_characters_that_the_terminal_lacks_are_replaced(monkeypatch, tmp_path):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    with console.capture(tmp_path / "log.txt"):
        console.show("y_o → y_r \udc80")
    assert terminal.buffer.getvalue() == b"y_o ? y_r ?\n"
    assert "y_o → y_r \\udc80" in (tmp_path / "log.txt").read_text()


def test_full_disk_neither_stops_nor_hides_the_run(capsys, tmp_path, monkeypatch):
    def fail(self, line):
        raise OSError(28, "No space left on device")

    with console.capture(tmp_path / "log.txt"):
        monkeypatch.setattr(sys.stdout._console, "log", type("Full", (), {"write": fail})())
        print("hello")
    err = capsys.readouterr().err
    assert "No space left" in err
    assert "hello" in err


RAY_PROGRAM = """
import sys, warnings
from pathlib import Path
import ray
from verl_ext.runtime import console

@ray.remote(num_cpus=0)
class Trainer:
    def work(self):
        print("chatter of the worker")
        warnings.warn("a warning of the worker")
        for i in range(20):
            print(f"similar line number {i}")
        console.show("step 1/1 done")
        try:
            raise KeyError("caught and logged")
        except KeyError:
            import traceback; traceback.print_exc()
    def fail(self):
        raise ValueError("the worker gives up")

with console.capture(Path(sys.argv[1])):
    print("chatter of the driver")
    warnings.warn("a warning of the driver")
    ray.init(num_cpus=1, include_dashboard=False)
    trainers = [Trainer.remote(), Trainer.remote()]
    ray.get([trainer.work.remote() for trainer in trainers])
    if sys.argv[2] == "fail":
        ray.get(trainers[0].fail.remote())
print("summary", ray.is_initialized())
"""


@pytest.mark.parametrize("outcome", ["succeed", "fail"])
def test_with_a_real_ray_program(tmp_path, outcome):
    program, log_file = tmp_path / "program.py", tmp_path / "run" / "log.txt"
    program.write_text(RAY_PROGRAM)
    # Whether the worker's module is found must not depend on how the package is installed.
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, program, log_file, outcome], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    log = log_file.read_text()
    assert [log.count(f"similar line number {i}\n") for i in range(20)] == [2] * 20, done.stderr
    assert "chatter of the driver" in log
    assert re.search(r"\(Trainer pid=\d+\) chatter of the worker", log)
    assert all(f"a warning of the {place}" in log for place in ("driver", "worker"))
    assert "chatter" not in done.stdout + done.stderr
    assert "a warning" not in done.stderr
    assert done.stdout.startswith("step 1/1 done\n" * 2)
    assert re.search(r"\(Trainer pid=\d+\) KeyError: 'caught and logged'\n", done.stderr)
    assert re.search(r"\(Trainer pid=\d+\)   File .* in work\n", done.stderr)
    if outcome == "succeed":
        assert done.returncode == 0
        assert done.stdout == "step 1/1 done\n" * 2 + "summary False\n"
        assert done.stderr.count("KeyError: 'caught") == 1
    else:
        assert done.returncode == 1
        assert done.stderr.endswith(f"ValueError: the worker gives up\nEverything the run printed: {log_file}\n")
        assert "The run failed." in done.stderr


def test_what_dies_after_the_run_ended_well_is_only_in_the_file(terminal_after, tmp_path, monkeypatch):
    # Ray takes its actors down while the lines of the last moments are still on their way.
    late = ["(EngineCore pid=3) ERROR engine died", f"(Trainer pid=4) {console.MARKER}step 9/9"]
    asked = []

    def ray_is_up():
        asked.append(True)
        # First asked before the run, then while lines are waited for.
        if len(asked) == 2:
            print("\n".join(late))
        return False

    monkeypatch.setattr(console, "_ray_is_up", ray_is_up)
    out, err = terminal_after("all is well")
    assert (out, err) == ("step 9/9\n", "")
    assert "engine died" in (tmp_path / "log.txt").read_text()
