"""linear_divergence on inputs of a certain kind: tied heads, ties, extreme and forbidden tokens, numbers by hand."""

import pytest
import torch
import torch.nn.functional as F

from verl_ext.divergence import Head, Objective, Term, Tokens, linear_divergence

pytestmark = pytest.mark.usefixtures("way")

V, D_STUDENT = 50, 12


def test_two_tokens_three_words_by_hand():
    student = torch.tensor([[0.5, 0.25, 0.25]]).double().log()
    teacher = torch.tensor([[0.25, 0.25, 0.5]]).double().log()
    words = torch.eye(3).double()
    objective = Objective(terms=(Term(divergence="forward_kl", support="full"),))
    at = Head(hidden=student.requires_grad_(), weight=words)
    got = linear_divergence(
        student=at,
        teacher=Head(hidden=teacher, weight=words),
        tokens=Tokens(weights=torch.ones(1)),
        objective=objective,
    )
    got.loss.backward()
    assert got.loss.item() == pytest.approx(0.25 * torch.tensor(2.0).double().log().item())
    torch.testing.assert_close(at.hidden.grad, torch.tensor([[0.25, 0.0, -0.25]]).double())


@pytest.mark.parametrize("tail", [None, "bucket", "renormalize", "renormalize_teacher", "drop"])
@pytest.mark.parametrize("where", ["teacher_topk", "student_topk"])
@pytest.mark.parametrize(("divergence", "beta"), [("forward_kl", None), ("reverse_kl", None), ("jsd", 0.3)])
def test_ties_extreme_logits_and_forbidden_tokens_stay_finite(divergence, beta, where, tail):
    bias = torch.zeros(V)
    bias[:10] = float("-inf")  # forbidden on both sides
    bias[10:20] = -1e30
    hidden = torch.cat([torch.zeros(2, D_STUDENT), 1e4 * torch.randn(4, D_STUDENT)])
    sides = [
        Head(hidden=hidden.clone().requires_grad_(), weight=torch.randn(V, D_STUDENT), bias=bias) for _ in range(2)
    ]
    support = {"support": where, "tail": tail, "top_k": 6} if tail else {"support": "full"}
    term = Term(divergence=divergence, beta=beta, **support)
    got = linear_divergence(
        student=sides[0], teacher=sides[1], tokens=Tokens(weights=torch.ones(6)), objective=Objective(terms=(term,))
    )
    got.loss.backward()
    for values in got.tokens.values():
        assert values.isfinite().all()
    assert sides[0].hidden.grad.isfinite().all()


def test_tied_and_frozen_heads():
    table = torch.randn(V, D_STUDENT, requires_grad=True)
    ids = torch.randint(V, (5,))
    target = Head(hidden=torch.randn(5, D_STUDENT), weight=torch.randn(V, D_STUDENT))
    objective = Objective(terms=(Term(divergence="forward_kl", support="full"),))
    tokens = Tokens(weights=torch.full((5,), 0.2))
    hidden = table[ids].tanh()
    linear_divergence(
        student=Head(hidden=hidden, weight=table), teacher=target, tokens=tokens, objective=objective
    ).loss.backward()
    tied = table.grad.clone()
    table.grad = None
    logits, target_logits = table[ids].tanh() @ table.T, target.hidden @ target.weight.T
    F.kl_div(logits.log_softmax(-1), target_logits.log_softmax(-1), log_target=True, reduction="batchmean").backward()
    torch.testing.assert_close(tied, table.grad, rtol=1e-5, atol=1e-6)
    states = hidden.detach().requires_grad_()
    linear_divergence(
        student=Head(hidden=states, weight=table.detach()), teacher=target, tokens=tokens, objective=objective
    ).loss.backward()
    assert states.grad.abs().max() > 0
