"""Two tokens that trade places in the teacher's distribution: against a teacher whose head has them exchanged."""

import dataclasses

import pytest
import torch

from verl_ext.divergence import Head, Objective, Term, Tokens, linear_divergence

pytestmark = pytest.mark.usefixtures("way")

N, V, D_STUDENT, D_TEACHER = 16, 50, 12, 20
SWAPPED = (3, 41)
TERMS = [
    {"divergence": "forward_kl", "support": "full"},
    {"divergence": "reverse_kl", "support": "full"},
    {"divergence": "jsd", "beta": 0.3, "support": "full"},
    {"divergence": "reverse_kl", "support": "teacher_topk", "tail": "renormalize", "top_k": 6},
    {"divergence": "forward_kl", "support": "teacher_topk", "tail": "bucket", "top_k": 6, "entropy_above": 2.5},
    {"divergence": "forward_kl", "support": "student_topk", "tail": "bucket", "top_k": 6},
    {"divergence": "sampled_kl", "support": "sampled", "estimator": "k1"},
    {"divergence": "sampled_kl", "support": "sampled", "estimator": "k3"},
]
HEADS = [{}, {"bias": True}, {"bias": True, "soft_cap": 4.0, "temperature": 0.7}]


def make(dtype, *, bias=False, soft_cap=None, temperature=1.0):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    def head_of(d):
        weight = draw(V, d) * 1.5 / d**0.5
        weight[list(SWAPPED)] *= 3  # among the likeliest tokens of many positions
        return Head(
            hidden=draw(N, d),
            weight=weight,
            bias=draw(V) if bias else None,
            soft_cap=soft_cap,
            temperature=temperature,
        )

    student, teacher = head_of(D_STUDENT), head_of(D_TEACHER)
    # One token each that was sampled is the one or the other.
    ids = torch.tensor([*SWAPPED, *torch.randint(V, (N - 2,), generator=generator)])
    return student, teacher, Tokens(weights=torch.rand(N, generator=generator).to(dtype) + 0.1, ids=ids)


def exchanged(head):
    """The same head with two rows of weight and bias in each other's place."""
    order = torch.arange(V)
    order[list(SWAPPED)] = order[list(SWAPPED[::-1])]
    return dataclasses.replace(
        head, weight=head.weight[order], bias=None if head.bias is None else head.bias[order], swapped=None
    )


def run(student, teacher, tokens, parameters):
    leaves = {name: getattr(student, name).clone().requires_grad_() for name in ("hidden", "weight")}
    student = dataclasses.replace(student, **leaves)
    objective = Objective(terms=(Term(**parameters),), overlap_top_k=5)
    got = linear_divergence(student=student, teacher=teacher, tokens=tokens, objective=objective)
    got.loss.backward()
    return {"loss": got.loss.detach(), "hidden": student.hidden.grad, "weight": student.weight.grad, **got.tokens}


@pytest.mark.parametrize("options", HEADS, ids=str)
@pytest.mark.parametrize("parameters", TERMS, ids=str)
def test_swapped_teacher_is_the_teacher_with_exchanged_rows(parameters, options):
    student, teacher, tokens = make(torch.float64, **options)
    expected = run(student, exchanged(teacher), tokens, parameters)
    swapped = run(student, dataclasses.replace(teacher, swapped=SWAPPED), tokens, parameters)
    torch.testing.assert_close(swapped, expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(swapped["loss"], run(student, teacher, tokens, parameters)["loss"], rtol=1e-6)


@pytest.mark.parametrize("order", [SWAPPED, SWAPPED[::-1]])
def test_value_by_plain_autograd_in_float64(order):
    student, teacher, tokens = make(torch.float64)
    hidden = student.hidden.clone().requires_grad_()
    s = (hidden @ student.weight.T).log_softmax(-1)
    t = (teacher.hidden @ teacher.weight.T).softmax(-1)
    t[:, list(SWAPPED)] = t[:, list(SWAPPED[::-1])]
    loss = (tokens.weights * (t * (t.log() - s)).sum(-1)).sum()
    loss.backward()
    narrow = {
        "student": Head(hidden=student.hidden.float(), weight=student.weight.float()),
        "teacher": Head(hidden=teacher.hidden.float(), weight=teacher.weight.float(), swapped=order),
        "tokens": dataclasses.replace(tokens, weights=tokens.weights.float()),
    }
    got = run(**narrow, parameters=TERMS[0])
    torch.testing.assert_close(got["loss"].double(), loss.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got["hidden"].double(), hidden.grad, rtol=1e-4, atol=1e-5)


def test_swapping_the_students_token_with_the_teachers_makes_twins_agree():
    student, _, tokens = make(torch.float64)
    twin = dataclasses.replace(exchanged(student), swapped=SWAPPED)
    got = run(student, twin, tokens, TERMS[0])
    assert got["token_loss"].abs().max() < 1e-12
    assert (got["argmax_agreement"] == 1).all()


def test_padding_behind_the_vocabulary_stays_where_it_is():
    student, teacher, tokens = make(torch.float64)
    padding = torch.full((7, D_TEACHER), float("nan"), dtype=torch.float64)
    padded = dataclasses.replace(teacher, weight=torch.cat([teacher.weight, padding]), swapped=SWAPPED)
    objective = Objective(terms=(Term(**TERMS[0]),))
    got = linear_divergence(student=student, teacher=padded, tokens=tokens, objective=objective, vocab_size=V)
    expected = linear_divergence(student=student, teacher=exchanged(teacher), tokens=tokens, objective=objective)
    torch.testing.assert_close(got.loss, expected.loss)


def test_a_student_is_not_swapped():
    student, teacher, tokens = make(torch.float32)
    with pytest.raises(ValueError, match="only a teacher's tokens can be swapped"):
        run(dataclasses.replace(student, swapped=SWAPPED), teacher, tokens, TERMS[0])
