"""The Triton kernels: against float64 in the interpreter, at the sizes of real vocabularies, and compiled for GPUs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from verl_ext.divergence import Head, Objective, Term, Tokens, TopK, kernels, linear, linear_divergence
from verl_ext.divergence.softmax import PIECE

SMALL, LARGE = 37, 151_936
TERMS = [
    Term(divergence="forward_kl", support="full"),
    Term(divergence="jsd", beta=0.3, support="full", position_clip=1.0),
    Term(divergence="reverse_kl", support="student_topk", tail="bucket", top_k=5),
]


def logits_of(num_positions, num_tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 4 * torch.randn(num_positions, num_tokens, generator=generator)


@pytest.mark.parametrize(("num_positions", "num_tokens"), [(0, SMALL), (1, SMALL), (7, SMALL), (2, LARGE), (3, 1025)])
def test_normaliser(num_positions, num_tokens):
    logits = logits_of(num_positions, num_tokens)
    got = kernels.normalise(logits)
    exact = logits.double()
    probs = exact.softmax(-1)
    assert ((got.high.double() + got.low.double()) - exact.logsumexp(-1)).abs().sum() <= 1e-6 * num_positions
    assert (got.entropy.double() + torch.special.xlogy(probs, probs).sum(-1)).abs().sum() <= 1e-5 * num_positions
    assert torch.equal(got.argmax, logits.argmax(-1))
    width = num_tokens // PIECE * PIECE
    assert torch.equal(
        got.maxima, logits[:, :width].unflatten(-1, (-1, PIECE)).amax(-1) if width else got.maxima[:, :0]
    )


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("term", TERMS, ids=lambda term: f"{term.divergence}-{term.support}")
@pytest.mark.parametrize(("num_positions", "num_tokens"), [(7, LARGE), (130, SMALL)])
def test_value_and_gradient_at_sizes_that_do_not_divide(monkeypatch, term, num_positions, num_tokens):
    monkeypatch.setitem(linear.CHUNK_BYTES, "cpu", 3 * 2 * num_tokens * 4 if num_tokens == LARGE else 1 << 16)
    monkeypatch.setattr(linear, "GRADIENT_BYTES", 4 * num_tokens * 4 if num_tokens == LARGE else 1 << 15)
    found, exact = (run(term, num_positions, num_tokens, dtype) for dtype in (torch.float32, torch.float64))
    for got, expected in zip(found, exact, strict=True):
        # A float32 sum over so many tokens has this error with every way to the divergence.
        assert (got.double() - expected).norm() <= (1e-4 if num_tokens == LARGE else 1e-5) * expected.norm()


def run(term, num_positions, num_tokens, dtype):
    """Loss and gradients; float64 never meets a kernel."""
    generator = torch.Generator().manual_seed(1)
    hidden, weight, teacher_hidden, teacher_weight = (
        torch.randn(size, 8, generator=generator).to(dtype)
        for size in (num_positions, num_tokens, num_positions, num_tokens)
    )
    hidden.requires_grad_(), weight.requires_grad_()
    got = linear_divergence(
        student=Head(hidden=hidden, weight=weight),
        teacher=Head(hidden=teacher_hidden, weight=teacher_weight),
        tokens=Tokens(weights=torch.full((num_positions,), 1 / num_positions, dtype=dtype)),
        objective=Objective(terms=(term,)),
    )
    got.loss.backward()
    return got.loss.detach(), hidden.grad, weight.grad


@pytest.mark.usefixtures("kernels")
def test_tokens_that_two_terms_name_get_both_derivatives():
    """The sampled token is in the top-k at some positions and outside at others, beside a term over all tokens."""
    terms = (
        Term(divergence="reverse_kl", support="full"),
        Term(divergence="forward_kl", support="teacher_topk", tail="bucket", top_k=4),
        Term(divergence="jsd", beta=0.4, support="student_topk", tail="bucket", top_k=4),
        Term(divergence="cross_entropy", support="sampled"),
    )
    results = []
    for dtype in (torch.float32, torch.float64):
        generator = torch.Generator().manual_seed(2)
        student, teacher = (torch.randn(40, 9, generator=generator).to(dtype).requires_grad_() for _ in range(2))
        weight, other = (torch.randn(SMALL, 9, generator=generator).to(dtype).requires_grad_() for _ in range(2))
        got = linear_divergence(
            student=Head(hidden=student, weight=weight, temperature=0.8),
            teacher=Head(hidden=teacher, weight=other),
            tokens=Tokens(weights=torch.rand(40, generator=generator).to(dtype), ids=torch.arange(40) % SMALL),
            objective=Objective(terms=terms),
        )
        got.loss.backward()
        results.append((got.loss.detach().double(), student.grad.double(), weight.grad.double()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("kernels")
def test_a_gradient_is_rounded_once(monkeypatch):
    """A student near its teacher: rounded apart, the two large parts of p_S - p_T would drown their difference."""
    monkeypatch.setattr(
        linear,
        "gradient_dtype",
        lambda head: torch.bfloat16 if head.hidden.dtype == torch.float32 else head.hidden.dtype,
    )
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(20, 16, generator=generator)
    weight = torch.randn(SMALL, 16, generator=generator)
    near = hidden + 1e-3 * torch.randn(20, 16, generator=generator)
    log_probs = (hidden @ weight.T).log_softmax(-1).topk(5, -1)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        student = near.detach().to(dtype, copy=True).requires_grad_()
        linear_divergence(
            student=Head(hidden=student, weight=weight.to(dtype)),
            teacher=TopK(ids=log_probs.indices, log_probs=log_probs.values.to(dtype)),
            tokens=Tokens(weights=torch.ones(20, dtype=dtype)),
            objective=Objective(terms=(Term(divergence="forward_kl", support="teacher_topk", tail="bucket"),)),
        ).loss.backward()
        gradients.append(student.grad.double())
    assert (gradients[0] - gradients[1]).norm() <= 4e-3 * gradients[1].norm()


def test_a_scale_is_applied_once_and_not_rounded():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)).half()
    scale = torch.tensor(0.3337)
    expected = (values.double() * scale.double()).half()
    kernels.scale_in_place(values, scale)
    assert torch.equal(values, expected)
    kernels.scale_in_place(values, torch.tensor(1.0))
    assert torch.equal(values, expected)


def test_every_kernel_compiles_for_gpus_and_spills_nothing():
    script = Path(__file__).with_name("kernel_compiler.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["capability"] for line in found} == {80, 90}
    assert {line["kernel"] for line in found} == {"_normalise", "_scale", "_visit"}
    assert all(line["spilled"] == 0 for line in found), found
