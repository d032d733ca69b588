"""Runs of the real thing: `recipe.trd.main` in a process of its own, with Ray, FSDP2 and vLLM."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
WORLD = ROOT / "data" / "tiny_world"

ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
}

SMALL = [
    "data.train_batch_size=16",
    "data.val_max_samples=32",
    "trainer.val_before_train=False",
    "actor_rollout_ref.actor.optim.lr=2e-3",
]


class Run:
    """A started run: its process, its terminal and its folder."""

    def __init__(self, folder: Path, arguments: list[str], module: str):
        self.folder = folder
        self.terminal = folder.parent / f"{folder.name}.terminal-{time.monotonic_ns()}"
        environment = {**os.environ, **ENVIRONMENT, "WANDB_MODE": "offline"}
        command = [sys.executable, "-m", module, *arguments, f"trainer.default_local_dir={folder}"]
        with self.terminal.open("w") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)

    def wait(self, timeout_s: float = 480) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"still running after {timeout_s} s:\n{self.text()[-4000:]}")

    def wait_for(self, text: str, timeout_s: float = 480) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.text():
            assert self.process.poll() is None, f"ended before it said {text!r}:\n{self.text()[-4000:]}"
            assert time.monotonic() < deadline, f"no {text!r} within {timeout_s} s:\n{self.text()[-4000:]}"
            time.sleep(0.5)

    def text(self) -> str:
        return self.terminal.read_text(errors="replace")

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def metrics(self, name: str = "metrics.jsonl") -> dict[int, dict[str, float]]:
        lines = [json.loads(line) for line in (self.folder / name).read_text().splitlines()]
        steps: dict[int, dict[str, float]] = {}
        for line in lines:
            steps.setdefault(line["step"], {}).update(line["data"])
        return steps

    def rows(self, kind: str, step: int) -> list[dict]:
        return [json.loads(line) for line in (self.folder / kind / f"{step}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def world() -> Path:
    """The tiny world of the quick start; made by `python -m recipe.trd.tiny_world`."""
    if not (WORLD / "world.json").exists():
        pytest.fail("data/tiny_world is missing; run python -m recipe.trd.tiny_world, as scripts/test.sh does")
    return WORLD


@pytest.fixture(scope="session")
def launch(world: Path):
    """Start a run in a folder, `launch(folder, *overrides)`; what still runs at the end of the session is killed."""
    started: list[Run] = []

    def start(folder: Path, *overrides: str, module: str = "recipe.trd.main") -> Run:
        started.append(Run(folder, [*overrides], module))
        return started[-1]

    yield start
    for run in started:
        if run.process.poll() is None:
            run.process.kill()


@pytest.fixture(scope="session")
def engine_environment() -> dict[str, str]:
    """What engines on a CPU need in the environment."""
    return dict(ENVIRONMENT)


@pytest.fixture(scope="session")
def run_tour(world: Path, tmp_path_factory):
    """Run a module of this folder that takes up one case after the other, `run_tour(module, cases)`: its run folder."""

    def run(module: str, cases: dict | list) -> Path:
        folder = tmp_path_factory.mktemp(module)
        (folder / "cases.json").write_text(json.dumps(cases))
        command = [sys.executable, "-m", module, str(folder / "cases.json"), str(folder / "run")]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parent)}
        terminal = folder / "terminal"  # a file: of a pipe, what outlives the run would hold the other end
        with terminal.open("w") as out:
            ended = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, timeout=600, check=False
            )
        assert ended.returncode == 0, terminal.read_text(errors="replace")[-4000:]
        return folder / "run"

    return run


@pytest.fixture(scope="session")
def trd_run(launch, tmp_path_factory) -> Run:
    """Three steps of TRD with a checkpoint and a validation at the end."""
    run = launch(
        tmp_path_factory.mktemp("trd") / "run",
        "method=trd_opd",
        *SMALL,
        "trainer.total_training_steps=3",
        "trainer.test_freq=3",
        "trainer.save_freq=3",
        "trainer.logger=[console,file,tensorboard,wandb]",
        "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]",
    )
    assert run.wait() == 0, run.text()[-4000:]
    return run


@pytest.fixture(scope="session")
def fitted_bridge(world, tmp_path_factory):
    """A bridge between student and teacher of the tiny world: its folder, and what the command printed."""
    out = tmp_path_factory.mktemp("bridge") / "out"
    overrides = {
        "student": world / "student",
        "teacher": world / "teacher",
        "train_files": world / "train.parquet",
        "out": out,
        "num_prompts": 256,
        "max_prompt_length": 64,
        "max_response_length": 64,
        "dtype": "float32",
        "device": "cpu",
        "batch_tokens": 4096,
        "vllm": "{enforce_eager: true}",
    }
    environment = {**os.environ, **ENVIRONMENT}
    command = [sys.executable, "-m", "recipe.trd.fit_bridge", *(f"{key}={value}" for key, value in overrides.items())]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    return out, ended.stdout
