"""Errors of the divergences against float64, beside those of plain autograd on the same numbers.

    python benchmarks/numerics.py                     # CPU, a small vocabulary
    python benchmarks/numerics.py --device cuda       # the kernels, a real vocabulary

Every divergence on every support and tail, with clips and gate, in float32 and bfloat16. An error is that of the value,
or the relative 2-norm of that of a gradient. Plain autograd multiplies in the same type, and softmax and the equation
are float32. Passes where no error is larger than 1.2 times plain autograd's, or below the rounding of the type.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("VERL_PLATFORM", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from verl_ext.divergence import Head, Objective, Term, Tokens, linear_divergence

LIMIT = 1.2
NEGLIGIBLE = {"float32": 1e-4, "bfloat16": 2.5e-3}
"""Errors of gradients that are as large as the rounding of the result, over sums of a whole vocabulary."""
VALUE_NEGLIGIBLE = {"float32": 2e-6, "bfloat16": 1e-5}
TOP_K = 32


POSITION_CLIPS = {"forward_kl": 8.5, "reverse_kl": 8.5, "jsd": 0.57}
"""About the median of what the positions have, so that some are clipped."""


def terms(vocab: int) -> Iterator[Term]:
    """Every divergence x support x tail, and what can be set beside."""
    median_entropy = math.log(vocab) - 3.6  # of softmax of Gaussian logits with standard deviation 3
    for parameters in ({"divergence": "forward_kl"}, {"divergence": "reverse_kl"}, {"divergence": "jsd", "beta": 0.3}):
        yield Term(**parameters, support="full")
        yield Term(**parameters, support="full", entry_clip=1e-3)
        yield Term(**parameters, support="full", position_clip=POSITION_CLIPS[str(parameters["divergence"])])
        yield Term(**parameters, support="full", entropy_above=median_entropy)
        for support in ("teacher_topk", "student_topk"):
            for tail in ("bucket", "renormalize", "renormalize_teacher", "drop"):
                yield Term(**parameters, support=support, tail=tail, top_k=TOP_K)
    yield Term(divergence="cross_entropy", support="sampled")
    for estimator in ("k1", "k2", "k3"):
        yield Term(divergence="sampled_kl", support="sampled", estimator=estimator)


def main() -> int:
    """Print one line a term, and PASS or FAIL."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--positions", type=int, default=33)
    parser.add_argument("--vocab", type=int, help="151,936 on a GPU, 1,000 on a CPU")
    parser.add_argument("--out", type=Path, help="write JSON there")
    options = parser.parse_args()
    options.vocab = options.vocab or {"cpu": 1000, "cuda": 151_936}[options.device]
    results, passed = [], True
    for dtype in ("float32", "bfloat16"):
        for term in terms(options.vocab):
            result = compare(term, dtype, options)
            passed &= result["passed"]
            results.append(result)
            print(line(result), flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{'PASS' if passed else 'FAIL'} {sum(r['passed'] for r in results)} of {len(results)}")
    return 0 if passed else 1


def line(result: dict) -> str:
    """Ours and plain autograd's: value, hidden states, head."""
    errors = "  ".join(f"{ours:.1e}/{plain:.1e}" for ours, plain in zip(result["ours"], result["plain"], strict=True))
    return f"{'ok  ' if result['passed'] else 'FAIL'} {result['dtype']:8} {result['term']:62} {errors}"


def compare(term: Term, dtype: str, options: argparse.Namespace) -> dict:
    """Errors of ours and of plain autograd against ours in float64, which the unit tests hold against equations."""
    inputs = draw(options, getattr(torch, dtype))
    exact = run(term, {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()})
    ours, by_autograd = run(term, inputs), plain(term, inputs)
    if not all(float(want.norm()) > 0 for want in exact):
        raise ValueError(f"{term} says nothing about these inputs")
    errors = [
        [
            float((got.double() - want).norm() / want.norm().clamp_min(1e-30))
            for got, want in zip(way, exact, strict=True)
        ]
        for way in (ours, by_autograd)
    ]
    limits = [VALUE_NEGLIGIBLE[dtype], NEGLIGIBLE[dtype], NEGLIGIBLE[dtype]]
    within = [mine <= max(LIMIT * his, limit) for mine, his, limit in zip(*errors, limits, strict=True)]
    names = [term.divergence, term.support, term.tail, term.estimator]
    clips = [f"{key}={value}" for key in CLIPS if (value := getattr(term, key)) is not None]
    text = " ".join(name for name in [*names, *clips] if name)
    return {"term": text, "dtype": dtype, "passed": all(within), "ours": errors[0], "plain": errors[1]}


CLIPS = ("entry_clip", "position_clip", "entropy_above")


def draw(options: argparse.Namespace, dtype: torch.dtype) -> dict[str, Tensor]:
    """Rows and heads whose logits have standard deviation 3."""
    generator = torch.Generator(options.device).manual_seed(0)

    def normal(rows: int, dim: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(rows, dim, generator=generator, device=options.device) * scale).to(dtype)

    ids = torch.randint(options.vocab, (options.positions,), generator=generator, device=options.device)
    return {
        "hidden": normal(options.positions, 64),
        "weight": normal(options.vocab, 64, 3 / 8),
        "teacher_hidden": normal(options.positions, 96),
        "teacher_weight": normal(options.vocab, 96, 3 / 96**0.5),
        "ids": ids,
    }


def run(term: Term, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and both gradients of linear_divergence."""
    hidden, weight = (inputs[name].clone().requires_grad_() for name in ("hidden", "weight"))
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    weights = torch.full((len(hidden),), 1 / len(hidden), device=hidden.device, dtype=dtype)
    loss = linear_divergence(
        student=Head(hidden=hidden, weight=weight),
        teacher=Head(hidden=inputs["teacher_hidden"], weight=inputs["teacher_weight"]),
        tokens=Tokens(weights=weights, ids=inputs["ids"]),
        objective=Objective(terms=(term,)),
    ).loss
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def plain(term: Term, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The same by autograd over whole logits."""
    hidden, weight = (inputs[name].clone().requires_grad_() for name in ("hidden", "weight"))
    student = (hidden @ weight.t()).float().log_softmax(-1)
    teacher = (inputs["teacher_hidden"] @ inputs["teacher_weight"].t()).float().log_softmax(-1)
    entropy = -(teacher.exp() * teacher).sum(-1)
    values = _entries(term, *_events(term, student, teacher, inputs["ids"]))
    values = (values if term.entry_clip is None else values.clamp(max=term.entry_clip)).sum(-1)
    if term.position_clip is not None:
        values = values.clamp(max=term.position_clip)
    if term.entropy_above is not None:
        values = values * (entropy > term.entropy_above)
    loss = values.mean()
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def _events(term: Term, student: Tensor, teacher: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor]:
    if term.support == "full":
        return student, teacher
    if term.support == "sampled":
        return student.gather(-1, sampled[:, None]), teacher.gather(-1, sampled[:, None])
    ids = (teacher if term.support == "teacher_topk" else student).topk(term.top_k or 0, -1).indices
    at = [side.gather(-1, ids) for side in (student, teacher)]
    if term.tail == "bucket":
        inside = torch.zeros_like(student, dtype=torch.bool).scatter(-1, ids, True)
        rests = [side.masked_fill(inside, -torch.inf).logsumexp(-1, keepdim=True) for side in (student, teacher)]
        at = [torch.cat(pair, -1) for pair in zip(at, rests, strict=True)]
    if term.tail == "renormalize":
        at[0] = at[0].log_softmax(-1)
    if term.tail in ("renormalize", "renormalize_teacher"):
        at[1] = at[1].log_softmax(-1)
    return at[0], at[1]


def _entries(term: Term, student: Tensor, teacher: Tensor) -> Tensor:
    log_ratio = teacher - student
    match term.divergence, term.estimator:
        case "forward_kl", _:
            return teacher.exp() * log_ratio
        case "reverse_kl", _:
            return -student.exp() * log_ratio
        case "jsd", _:
            beta = term.beta or 0.0
            mixture = ((1 - beta) * student.exp() + beta * teacher.exp()).log()
            return beta * teacher.exp() * (teacher - mixture) + (1 - beta) * student.exp() * (student - mixture)
        case "cross_entropy", _:
            return -student
        case _, "k1":
            return -(student - student.detach()).exp() * log_ratio.detach()
        case _, "k2":
            return log_ratio.square() / 2
        case _:
            return log_ratio.clamp(-20, 20).expm1() - log_ratio.clamp(-20, 20)


if __name__ == "__main__":
    sys.exit(main())
