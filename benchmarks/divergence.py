"""Time and peak memory of distillation losses from hidden rows to gradients: ours beside its peers, in one run.

    python benchmarks/divergence.py                         # CPU, the size of the goal
    python benchmarks/divergence.py --also-tokens 8192      # ours once more, where plain autograd does not fit
    python benchmarks/divergence.py --tokens 8192 --device cuda --also-tokens 65536 --record
    python benchmarks/divergence.py --tokens 8192 --device cuda --student-dim 3584 --teacher-dim 5120 \\
        --only ours_full products_only                      # heads of a 7B and a 32B model, beside their products

Every method gets the same hidden rows and heads, computes a mean over tokens and the gradients of the student's hidden
rows and head, and runs in processes of its own, in turns. Memory is the peak beyond the inputs and their gradients;
time the best of all rounds. Two groups compute the same number each, which is checked: the forward KL over the whole
vocabulary, and verl's sum over the teacher's top-k, which needs no teacher logits. The last line says PASS or FAIL.
"""

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("VERL_PLATFORM", "cpu")

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PEER_ROWS = 128
"""Rows at a time of the peer that has no chunks of its own."""

GOALS = {
    "cpu": {"full": {"time": 1.05}, "top_k": {"time": 1.05}},
    "cuda": {"full": {"time": 0.8, "memory": 1.0}, "top_k": {"time": 1.0, "memory": 1 / 6}},
}
"""Of the rival's time and memory: on a CPU the fastest peer; on a GPU Liger where both compute the full sum, and verl's
loss on whole logits for a top-k."""
RIVALS = {"full": "liger", "top_k": "verl_top_k"}
MEMORY_GOAL = {"cpu": 1 / 8, "cuda": 1 / 10}
"""Of plain autograd's."""
FLOOR_GOAL = 0.6
"""Of our time on a GPU, what the four matrix products alone take."""


class Inputs(SimpleNamespace):
    """hidden [N, d_s], weight [V, d_s], teacher_hidden [N, d_t], teacher_weight [V, d_t], ids and log_probs [N, K]."""


def build_inputs(options: argparse.Namespace, *, num_tokens: int, vocab: int) -> Inputs:
    """Random rows and heads whose logits have standard deviation 2."""
    device, dtype = options.device, getattr(torch, options.dtype)
    generator = torch.Generator(device=device).manual_seed(0)

    def draw(rows: int, dim: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(rows, dim, generator=generator, device=device) * scale).to(dtype)

    student_dim, teacher_dim = options.student_dim, options.teacher_dim
    return Inputs(
        hidden=draw(num_tokens, student_dim).requires_grad_(),
        weight=draw(vocab, student_dim, 2 / student_dim**0.5).requires_grad_(),
        teacher_hidden=draw(num_tokens, teacher_dim),
        teacher_weight=draw(vocab, teacher_dim, 2 / teacher_dim**0.5),
        ids=draw(num_tokens, 4 * options.top_k).topk(options.top_k, -1).indices * (vocab // (4 * options.top_k)),
        log_probs=draw(num_tokens, options.top_k).float().log_softmax(-1) - 0.1,
    )


def ours_full(inputs: Inputs) -> Tensor:
    """linear_divergence, forward KL, full support."""
    from verl_ext.divergence import Head, Term

    teacher = Head(hidden=inputs.teacher_hidden, weight=inputs.teacher_weight)
    return _ours(inputs, teacher, Term(divergence="forward_kl", support="full"))


def ours_top_k(inputs: Inputs) -> Tensor:
    """linear_divergence, forward KL, the teacher's top-k, tail dropped as verl does."""
    from verl_ext.divergence import Term, TopK

    teacher = TopK(ids=inputs.ids, log_probs=inputs.log_probs)
    return _ours(inputs, teacher, Term(divergence="forward_kl", support="teacher_topk", tail="drop"))


def _ours(inputs: Inputs, teacher: Any, term: Any) -> Tensor:
    from verl_ext.divergence import Head, Objective, Tokens, linear_divergence

    num_tokens = len(inputs.hidden)
    loss = linear_divergence(
        student=Head(hidden=inputs.hidden, weight=inputs.weight),
        teacher=teacher,
        tokens=Tokens(weights=torch.full((num_tokens,), 1 / num_tokens, device=inputs.hidden.device)),
        objective=Objective(terms=(term,)),
    ).loss
    loss.backward()
    return loss


def plain_autograd(inputs: Inputs) -> Tensor:
    """Both logits whole, kl_div of two log_softmax, backward."""
    with torch.no_grad():
        teacher = (inputs.teacher_hidden @ inputs.teacher_weight.t()).float().log_softmax(-1)
    student = (inputs.hidden @ inputs.weight.t()).float().log_softmax(-1)
    loss = F.kl_div(student, teacher, reduction="sum", log_target=True) / len(student)
    loss.backward()
    return loss


def trl_chunked(inputs: Inputs) -> Tensor:
    """TRL 0.27 has no chunked divergence: its generalized_jsd_loss (beta 0) on slices of rows, backward per slice."""
    from trl.experimental.gkd import GKDTrainer

    total = torch.zeros((), device=inputs.hidden.device)
    for start in range(0, len(inputs.hidden), PEER_ROWS):
        rows = slice(start, start + PEER_ROWS)
        with torch.no_grad():
            teacher = (inputs.teacher_hidden[rows] @ inputs.teacher_weight.t()).float()
        student = (inputs.hidden[rows] @ inputs.weight.t()).float()
        loss = GKDTrainer.generalized_jsd_loss(student, teacher, beta=0, reduction="sum") / len(inputs.hidden)
        loss.backward()
        total += loss.detach()
    return total


def verl_top_k(inputs: Inputs) -> Tensor:
    """verl's compute_forward_kl_topk on whole student logits, use_chunked_topk off."""
    return _verl(inputs, use_chunked_topk=False)


def verl_top_k_chunked(inputs: Inputs) -> Tensor:
    """verl's compute_forward_kl_topk on whole student logits, use_chunked_topk on (chunks of 128 rows)."""
    return _verl(inputs, use_chunked_topk=True)


def _verl(inputs: Inputs, *, use_chunked_topk: bool) -> Tensor:
    from verl.trainer.distillation.fsdp.losses import compute_forward_kl_topk

    settings = SimpleNamespace(
        use_chunked_topk=use_chunked_topk, chunked_topk_chunk_size=PEER_ROWS, log_prob_min_clamp=None
    )
    logits = (inputs.hidden @ inputs.weight.t()).unsqueeze(0)
    losses = compute_forward_kl_topk(
        student_logits=logits,
        teacher_topk_log_probs=torch.nested.as_nested_tensor([inputs.log_probs], layout=torch.jagged),
        teacher_topk_ids=torch.nested.as_nested_tensor([inputs.ids], layout=torch.jagged),
        config=SimpleNamespace(distillation_loss=settings),
        data_format="thd",
    )
    loss = losses["distillation_losses"].mean()
    loss.backward()
    return loss


def products_only(inputs: Inputs) -> Tensor:
    """The four products of ours_full and nothing else, in chunks that cuBLAS likes: the floor of every exact method."""
    from verl_ext.divergence.head import weight_gradient

    weight, teacher_weight = inputs.weight.detach(), inputs.teacher_weight
    hidden_gradient = torch.empty_like(inputs.hidden)
    gradient = torch.zeros_like(weight, dtype=torch.float32)
    for start in range(0, len(inputs.hidden), 1024):
        positions = slice(start, start + 1024)
        hidden = inputs.hidden.detach()[positions]
        logits = torch.mm(hidden, weight.t())
        torch.mm(inputs.teacher_hidden[positions], teacher_weight.t(), out=logits)
        hidden_gradient[positions] = torch.mm(logits, weight)
        weight_gradient(gradient=logits, hidden=hidden, out=gradient, accumulate=True)
    inputs.hidden.grad, inputs.weight.grad = hidden_gradient, gradient.to(weight.dtype)
    return gradient.sum()


def liger(inputs: Inputs) -> Tensor:
    """Liger's LigerFusedLinearJSDLoss, beta 0, no hard labels (CUDA only)."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    labels = torch.zeros(len(inputs.hidden), dtype=torch.long, device=inputs.hidden.device)
    function = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0)
    loss = function(inputs.hidden, inputs.weight, inputs.teacher_hidden, inputs.teacher_weight, labels)
    loss.backward()
    return loss


GROUPS: dict[str, list[Callable[[Inputs], Tensor]]] = {
    "full": [ours_full, plain_autograd, trl_chunked, liger],
    "top_k": [ours_top_k, verl_top_k, verl_top_k_chunked],
}
FLOOR = products_only
METHODS = {FLOOR.__name__: FLOOR} | {method.__name__: method for methods in GROUPS.values() for method in methods}


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Run one method in this process: peak memory of the first run, times of all, value and gradient for checking."""
    method = METHODS[options.method]
    torch.set_num_threads(options.threads)
    # Libraries and their thread buffers are no memory of the method.
    method(build_inputs(options, num_tokens=16, vocab=2048))
    inputs = build_inputs(options, num_tokens=options.tokens, vocab=options.vocab)
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in (inputs.hidden, inputs.weight))
    before = _memory(options.device, reset=True)
    seconds, cpu_seconds = [], []
    for repeat in range(options.repeats):
        inputs.hidden.grad = inputs.weight.grad = None
        start, cpu_start = time.perf_counter(), time.process_time()
        loss = method(inputs)
        if options.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        if repeat == 0:
            peak = _memory(options.device, reset=False)
    return {
        "extra_gib": (peak - before - gradients) / 2**30,
        "seconds": min(seconds),
        "cpu_seconds": min(cpu_seconds),
        "loss": loss.item(),
        "gradient_norm": inputs.weight.grad.float().norm().item(),
    }


def _memory(device: str, *, reset: bool) -> int:
    """Bytes in use (reset) or at the peak since then."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        return torch.cuda.max_memory_allocated()
    if reset:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # free memory that is still resident would hide what the method takes
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is resident now
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS" if reset else "VmHWM"].split()[0]) * 1024


def run_methods(options: argparse.Namespace, names: list[str], *, tokens: int, rounds: int) -> dict[str, dict]:
    """Results by method: the best time and the largest peak over the rounds, in which the methods take turns."""
    results: dict[str, dict] = {}
    for _ in range(rounds):
        for name in names:
            reason = _why_not(options, name, tokens)
            outcome = {"skipped": reason} if reason else _in_process(options, name, tokens)
            best = results.setdefault(name, outcome)
            for key in ("seconds", "cpu_seconds"):
                if key in best and key in outcome:
                    best[key] = min(best[key], outcome[key])
            if "extra_gib" in best and "extra_gib" in outcome:
                best["extra_gib"] = max(best["extra_gib"], outcome["extra_gib"])
    return results


def _why_not(options: argparse.Namespace, name: str, tokens: int) -> str | None:
    if name == "liger" and options.device == "cpu":
        return "needs a GPU"
    whole = 4.5 * tokens * options.vocab * 4
    if options.device == "cpu" and name in ("plain_autograd", "verl_top_k", "verl_top_k_chunked"):
        free = psutil.virtual_memory().available
        if whole > 0.8 * free:
            return f"needs about {whole / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
    return None


def _in_process(options: argparse.Namespace, name: str, tokens: int) -> dict[str, Any]:
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in vars(options).items() if key in CHILD_OPTIONS]
    command = [sys.executable, __file__, *arguments, f"--tokens={tokens}", f"--method={name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"skipped": f"failed ({done.returncode}): {(done.stderr.strip().splitlines() or ['no message'])[-1]}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


CHILD_OPTIONS = {"student_dim", "teacher_dim", "vocab", "top_k", "device", "dtype", "repeats", "threads"}


Check = tuple[bool, str]


def judge(options: argparse.Namespace, results: dict[str, dict], longer: dict[str, dict]) -> list[Check]:
    """Every goal: whether it is met, and one sentence."""
    done = {name: result for name, result in results.items() if "seconds" in result}
    checks: list[Check] = []
    for group, (ours, *peers) in GROUPS.items():
        if options.only and not set(options.only) & {peer.__name__ for peer in peers}:
            continue
        checks += _judge_group(options, done, group, ours.__name__, [peer.__name__ for peer in peers])
    if "ours_full" not in done:
        return checks
    ours = done["ours_full"]
    extra = ours["extra_gib"]
    if "plain_autograd" in done:
        ratio = extra / done["plain_autograd"]["extra_gib"]
        checks.append(_check(ratio, MEMORY_GOAL[options.device], "memory of plain autograd"))
    if FLOOR.__name__ in done and options.device == "cuda":
        share = done[FLOOR.__name__]["seconds"] / ours["seconds"]
        checks.append((share >= FLOOR_GOAL, f"products alone take {share:.3f} of our time (goal {FLOOR_GOAL})"))
    if longer:
        checks += _judge_longer(options, ours, longer["ours_full"])
    return checks


def _judge_longer(options: argparse.Namespace, ours: dict, longer: dict) -> list[Check]:
    """With more tokens: no more memory, and time in proportion."""
    text = f"at {options.also_tokens} tokens of that at {options.tokens}"
    if "extra_gib" not in longer:
        return [(False, f"{text}: {longer['skipped']}")]
    times = longer["seconds"] / ours["seconds"] / (options.also_tokens / options.tokens)
    # What grows is the gradient of the hidden rows, which is no extra, and values of a few numbers a token.
    return [
        _check(longer["extra_gib"] / ours["extra_gib"], 1.1, f"memory {text}"),
        _check(times, 1.1, f"time a token {text}"),
    ]


def _judge_group(options: argparse.Namespace, done: dict, group: str, ours: str, peers: list[str]) -> list[Check]:
    """Time and memory against the rival, and that all compute the same."""
    present = [name for name in peers if name in done]
    rivals = [name for name in present if options.device == "cpu" or name == RIVALS[group]]
    if ours not in done or not rivals:
        return [(False, f"{group}: nothing to compare")]
    rival = min(rivals, key=lambda name: done[name]["seconds"])
    checks = []
    for key, goal in GOALS[options.device][group].items():
        field = {"time": "seconds", "memory": "extra_gib"}[key]
        checks.append(_check(done[ours][field] / done[rival][field], goal, f"{group} {key} of {rival}"))
    limit = 1e-4 if options.dtype == "float32" else 3e-2
    for name in present:
        for key in ("loss", "gradient_norm"):
            if abs(done[name][key] / done[ours][key] - 1) > limit:
                checks.append((False, f"{name} has another {key}: {done[name][key]} for {done[ours][key]}"))
    return checks


def _check(ratio: float, goal: float, text: str) -> Check:
    return ratio <= goal, f"{text} {ratio:.3f} (goal {goal:.3f})"


def print_table(results: dict[str, dict], tokens: int) -> None:
    """One line a method."""
    print(f"\n{tokens} tokens{'':14} extra memory   wall time    CPU time    loss")
    for name, result in results.items():
        if "skipped" in result:
            print(f"  {name:22} -  {result['skipped']}")
        else:
            print(
                f"  {name:22} {result['extra_gib']:8.3f} GiB {result['seconds']:9.3f} s"
                f" {result['cpu_seconds']:9.3f} s   {result['loss']:.6f}"
            )


def describe_machine(options: argparse.Namespace) -> dict[str, Any]:
    """What a recorded result needs to be understood later."""
    git = [subprocess.run(["git", *a], cwd=ROOT, capture_output=True, text=True).stdout for a in GIT_QUESTIONS]
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    from verl_ext.runtime.packages import installed_versions

    packages = installed_versions(("torch", "trl", "verl", "transformers", "liger-kernel"))
    versions = {package: version or "not installed" for package, version in packages.items()}
    return {
        "date": date.today().isoformat(),
        "commit": git[0].strip(),
        "uncommitted_changes": bool(git[1].strip()),
        "command": " ".join(["python", *sys.argv]),
        "cpu": cpu.partition(":")[2].strip() or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        "python": platform.python_version(),
        "versions": versions,
    }


GIT_QUESTIONS = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])


def parse() -> argparse.Namespace:
    """The command line; defaults are the sizes of the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--also-tokens", type=int, default=0, help="measure ours with this many tokens, too")
    parser.add_argument("--student-dim", type=int, default=1024)
    parser.add_argument("--teacher-dim", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=2, help="processes per method, in turns")
    parser.add_argument("--repeats", type=int, default=2, help="runs in each process")
    parser.add_argument(
        "--record", action="store_true", help="write benchmarks/results/<date>-divergence-<device>.json"
    )
    parser.add_argument("--out", type=Path, help="write the same there")
    parser.add_argument("--only", nargs="+", choices=METHODS, help="leave the other methods out")
    parser.add_argument("--method", choices=METHODS, help="measure this one in this process and print JSON")
    options = parser.parse_args()
    options.dtype = options.dtype or {"cpu": "float32", "cuda": "bfloat16"}[options.device]
    return options


def main() -> int:
    """Measure, print, perhaps record; 0 for PASS."""
    options = parse()
    if options.method:
        print(json.dumps(measure(options)))
        return 0
    results = run_methods(options, options.only or list(METHODS), tokens=options.tokens, rounds=options.rounds)
    longer = {}
    print_table(results, options.tokens)
    if options.also_tokens:
        names = ["ours_full"] if options.only or options.device == "cuda" else ["ours_full", "plain_autograd"]
        longer = run_methods(options, names, tokens=options.also_tokens, rounds=1)
        print_table(longer, options.also_tokens)
    checks = judge(options, results, longer)
    passed, sentences = all(met for met, _ in checks), [text for _, text in checks]
    name = f"{date.today().isoformat()}-divergence-{options.device}.json"
    paths = [ROOT / "benchmarks" / "results" / name] * options.record + [options.out] * (options.out is not None)
    for path in paths:
        record = {
            "machine": describe_machine(options),
            "options": {key: value for key, value in vars(options).items() if key != "out"},
            "results": results,
            "longer": longer,
            "passed": passed,
            "checks": sentences,
        }
        path.write_text(json.dumps(record, indent=2) + "\n")
        print(f"\nrecorded in {path}")
    print(f"\n{'PASS' if passed else 'FAIL'} {'; '.join(sentences)}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
