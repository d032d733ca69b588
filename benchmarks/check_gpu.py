"""What needs a GPU, checked part by part: `bash scripts/check_gpu.sh`. One card is enough.

Every part runs in processes of its own, and writes its result to the folder as soon as it has one. The table at the end
says PASS, FAIL or NOT RUN, and why; the exit code is 1 where something failed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 400
"""Of a part; the first start on a machine reads some gigabytes of packages."""


@dataclass
class Result:
    """Of one part."""

    part: str
    verdict: str
    seconds: float
    detail: str


class Failed(Exception):
    """A part did not pass; the message is its detail."""


def run(command: list[str], *, log: Path, timeout_s: float = TIMEOUT_S) -> list[str]:
    """Lines that a command printed, which also go to the log.

    Raises:
        Failed: it ended badly, or not in time.
    """
    environment = {key: value for key, value in os.environ.items() if key != "VERL_PLATFORM"}
    with log.open("w") as out:
        try:
            code = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, timeout=timeout_s, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = f"none after {timeout_s:g} s"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if code != 0:
        raise Failed(f"exit code {code}: {(lines or ['no output'])[-1][:300]} (see {log.name})")
    return lines


def versions(folder: Path) -> str:
    """Packages and card."""
    sys.path.insert(0, str(ROOT))
    from verl_ext.runtime.packages import installed_versions

    names = ("torch", "triton", "vllm", "verl", "transformers", "ray", "flash-attn")
    found = {name: version or "not installed" for name, version in installed_versions(names).items()}
    (folder / "versions.json").write_text(json.dumps(found, indent=1) + "\n")
    return ", ".join(f"{name} {version}" for name, version in found.items())


def numerics(folder: Path) -> str:
    """All divergences, supports, tails and types against float64."""
    command = [sys.executable, "benchmarks/numerics.py", "--device", "cuda", "--out", str(folder / "numerics.json")]
    return run(command, log=folder / "numerics.log")[-1]


def divergence(folder: Path) -> str:
    """Time and memory beside Liger and verl."""
    command = [sys.executable, "benchmarks/divergence.py", "--device", "cuda", "--tokens", "8192"]
    out = ["--also-tokens", "65536", "--rounds", "1", "--repeats", "5", "--out", str(folder / "divergence.json")]
    return run([*command, *out], log=folder / "divergence.log")[-1]


def attention(folder: Path) -> str:
    """Packed attention against attention sequence by sequence, values, gradients and time."""
    return run([sys.executable, "benchmarks/packed_attention.py"], log=folder / "attention.log")[-1]


TINY = [
    *("model=tiny", "data=tiny_world", "cluster=gpu_shared", "data.val_max_samples=256", "trainer.logger=[file]"),
    # Graph capture takes longer than these few steps.
    *("actor_rollout_ref.rollout.enforce_eager=true", "actor_rollout_ref.rollout.dtype=bfloat16"),
    "distillation.teacher_models.teacher_model.inference.dtype=bfloat16",
    "actor_rollout_ref.model.use_remove_padding=true",
    "actor_rollout_ref.model.override_config.attn_implementation=packed",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=bf16",
    *("actor_rollout_ref.actor.optim.lr=3e-3", "actor_rollout_ref.actor.optim.lr_warmup_steps=5"),
]
EAGER_TEACHER = "distillation.teacher_models.teacher_model.inference.enforce_eager=true"


def train(folder: Path) -> str:
    """Thirty steps of trd_opd on one card: the student learns, and its server says what the trainer says."""
    steps = ["trainer.total_training_steps=30", "trainer.test_freq=30", "trainer.save_freq=30"]
    metrics = _train(folder, "train", ["method=trd_opd", *TINY, EAGER_TEACHER, *steps])
    scores = [value for line in metrics for key, value in line.items() if key.startswith("val-core/") and "acc" in key]
    gaps = [line["trd/server_trainer_gap/mean"] for line in metrics if "trd/server_trainer_gap/mean" in line]
    if len(scores) < 2 or not scores[-1] > scores[0]:
        raise Failed(f"held-out accuracy went from {scores[:1]} to {scores[-1:]} in 30 steps")
    if not gaps or max(gaps) > 0.2:
        raise Failed(f"server and trainer differ by {max(gaps, default=None)} nats")
    seconds = sorted(line["timing_s/step"] for line in metrics if "timing_s/step" in line)
    return (
        f"accuracy {scores[0]:.3f} -> {scores[-1]:.3f} in 30 steps, median step {seconds[len(seconds) // 2]:.2f} s, "
        f"server and trainer {max(gaps):.3f} nats apart"
    )


def resume(folder: Path) -> str:
    """The run of `train` goes on from its checkpoint."""
    steps = ["trainer.total_training_steps=32", "trainer.test_freq=-1", "trainer.val_before_train=false"]
    metrics = _train(folder, "train", ["method=trd_opd", *TINY, EAGER_TEACHER, *steps], log="resume")
    done = [line["training/global_step"] for line in metrics if "training/global_step" in line]
    if done[-2:] != [31, 32]:
        raise Failed(f"steps {done[-3:]}")
    return "steps 31 and 32 after the checkpoint of step 30"


def lora(folder: Path) -> str:
    """Three steps of opsd with LoRA: the adapter is in force after its server slept and woke."""
    steps = ["trainer.total_training_steps=3", "trainer.test_freq=-1", "trainer.val_before_train=false"]
    adapter = ["actor_rollout_ref.model.lora_rank=16", "actor_rollout_ref.model.lora_alpha=32", "trainer.save_freq=-1"]
    metrics = _train(folder, "lora", ["method=opsd", *TINY, *adapter, *steps])
    gaps = [line["trd/server_trainer_gap/mean"] for line in metrics if "trd/server_trainer_gap/mean" in line]
    if len(gaps) < 3 or max(gaps) > 0.2:
        raise Failed(f"server and trainer differ by {gaps} nats")
    return f"server and trainer at most {max(gaps):.3f} nats apart over 3 updates"


def _train(folder: Path, name: str, overrides: list[str], *, log: str | None = None) -> list[dict]:
    """Lines of metrics of a run."""
    run_dir = folder / name
    command = [sys.executable, "-m", "recipe.trd.main", *overrides, f"trainer.default_local_dir={run_dir}"]
    run(command, log=folder / f"{log or name}.log")
    return [json.loads(line)["data"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


PARTS: dict[str, Callable[[Path], str]] = {
    "versions": versions,
    "numerics": numerics,
    "divergence": divergence,
    "attention": attention,
    "train": train,
    "resume": resume,
    "lora": lora,
}
NO_GPU_NEEDED = ("versions",)


def check(part: str, folder: Path) -> Result:
    """Run a part; its result is written at once."""
    start = time.monotonic()
    if part not in NO_GPU_NEEDED and not torch.cuda.is_available():
        result = Result(part, "NOT RUN", 0.0, "no GPU")
    else:
        try:
            verdict, detail = "PASS", PARTS[part](folder)
        except Failed as error:
            verdict, detail = "FAIL", str(error)
        result = Result(part, verdict, round(time.monotonic() - start, 1), detail)
    (folder / f"result-{part}.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    print(f"{result.verdict:8} {part:10} {result.seconds:6.1f} s  {result.detail}", flush=True)
    return result


def main() -> int:
    """Run the parts, print the table; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "check_gpu")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{card}; results in {options.out}", flush=True)
    results = [check(part, options.out.resolve()) for part in options.parts]
    counts = {verdict: sum(one.verdict == verdict for one in results) for verdict in ("PASS", "FAIL", "NOT RUN")}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
