"""forward_kl_topk against a float64 reference written from its equation, value and gradient."""

from itertools import pairwise

import pytest
import torch

from verl_ext.divergence import forward_kl_topk, from_logits


def reference(student_logits, teacher_logits, k):
    """The equation, with the bucket as 1 - sum; [N] float64 with a graph."""
    student, teacher = student_logits.softmax(-1), teacher_logits.softmax(-1)
    top = teacher.topk(k, -1)
    p_s = student.gather(-1, top.indices)
    total = (top.values * (top.values.log() - p_s.log())).sum(-1)
    if k < student.shape[-1]:
        r_t, r_s = 1 - top.values.sum(-1), 1 - p_s.sum(-1)
        total = total + r_t * (r_t.log() - r_s.log())
    return total


def topk_of(teacher_logits, k, dtype):
    top = teacher_logits.log_softmax(-1).topk(k, -1)
    return {"teacher_ids": top.indices.int(), "teacher_log_probs": top.values.to(dtype)}


def logits_of(n, v, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(n, v, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize(("n", "v", "k"), [(1, 5, 1), (7, 33, 8), (64, 40, 40), (700, 17, 3), (3, 2, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_match_the_equation(n, v, k, dtype):
    student, teacher = logits_of(n, v)
    weight = torch.linspace(0.1, 2, n, dtype=torch.float64)
    expected_at = student.clone().requires_grad_()
    expected = reference(expected_at, teacher, k)
    (weight * expected).sum().backward()

    at = student.to(dtype).requires_grad_()
    got = forward_kl_topk(student_logits=at, **topk_of(teacher, k, dtype))["divergence"]
    (weight.to(dtype) * got).sum().backward()

    tolerance = 1e-6 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(got.double(), expected.detach(), rtol=tolerance, atol=4 * tolerance)
    torch.testing.assert_close(
        at.grad.double(), expected_at.grad, rtol=1e-5, atol=1e-6 if dtype == torch.float32 else 1e-7
    )


def test_two_tokens_three_words_by_hand():
    # The teacher's top-1 is the third word with 1/2, the bucket holds the other half; the student has 1/4 and 3/4.
    student = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    got = forward_kl_topk(
        student_logits=student,
        teacher_ids=torch.tensor([[2]]),
        teacher_log_probs=torch.tensor([[0.5]], dtype=torch.float64).log(),
    )
    by_hand = 0.5 * torch.tensor(0.5 / 0.25).log() + 0.5 * torch.tensor(0.5 / 0.75).log()
    assert got["divergence"].item() == pytest.approx(by_hand.item(), abs=1e-7)
    assert got["teacher_mass"].item() == pytest.approx(0.5)
    assert got["student_mass"].item() == pytest.approx(0.25)
    assert got["argmax_agreement"].item() == 0.0


def test_gradcheck():
    student, teacher = logits_of(5, 11)
    rows = topk_of(teacher, 4, torch.float64)
    torch.autograd.gradcheck(
        lambda x: forward_kl_topk(student_logits=x, **rows)["divergence"], student.requires_grad_(), atol=1e-6
    )


@pytest.mark.parametrize("k", [1, 6, 31])
def test_a_model_with_itself_has_no_divergence_and_no_gradient(k):
    student, _ = logits_of(9, 31)
    at = student.float().requires_grad_()
    got = forward_kl_topk(student_logits=at, **topk_of(at.detach(), k, torch.float32))["divergence"]
    got.sum().backward()
    assert got.abs().max() < 1e-6
    assert at.grad.abs().max() < 1e-6


def test_more_support_is_never_less_divergence():
    student, teacher = logits_of(50, 24)
    values = [
        forward_kl_topk(student_logits=student, **topk_of(teacher, k, torch.float64))["divergence"]
        for k in (1, 4, 12, 24)
    ]
    full = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none"
    )
    torch.testing.assert_close(values[-1], full.sum(-1))
    for fewer, more in pairwise(values):
        assert (fewer >= -1e-12).all()
        assert (fewer <= more + 1e-12).all()


def test_extreme_logits_stay_finite():
    student, teacher = (1e4 * x for x in logits_of(16, 20))
    at = student.float().requires_grad_()
    outputs = forward_kl_topk(student_logits=at, **topk_of(teacher, 3, torch.float32))
    outputs["divergence"].sum().backward()
    for value in outputs.values():
        assert value.isfinite().all()
    assert at.grad.isfinite().all()


def test_teacher_probability_zero_and_masked_words_count_nothing():
    student = torch.tensor([[0.3, -0.2, float("-inf"), 0.1]], requires_grad=True)
    got = forward_kl_topk(
        student_logits=student,
        teacher_ids=torch.tensor([[0, 1, 2]], dtype=torch.int32),
        teacher_log_probs=torch.tensor([[0.5, 0.5, 0.0]]).log(),
    )["divergence"]
    got.sum().backward()
    p = torch.tensor([0.3, -0.2, 0.1]).softmax(0)
    expected = 0.5 * (0.5 / p[0]).log() + 0.5 * (0.5 / p[1]).log()
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    assert student.grad.isfinite().all()


def test_rows_of_weight_zero_leak_nothing():
    student = torch.tensor([[1.0, 2.0, 3.0], [float("nan")] * 3], requires_grad=True)
    got = forward_kl_topk(
        student_logits=student, teacher_ids=torch.tensor([[0], [0]]), teacher_log_probs=torch.tensor([[-0.5], [-0.5]])
    )["divergence"]
    torch.where(torch.tensor([True, False]), got, 0).sum().backward()
    assert student.grad.isfinite().all()
    assert (student.grad[1] == 0).all()


def test_no_rows():
    at = torch.zeros(0, 7, requires_grad=True)
    got = forward_kl_topk(
        student_logits=at, teacher_ids=torch.zeros(0, 3, dtype=torch.int32), teacher_log_probs=torch.zeros(0, 3)
    )["divergence"]
    got.sum().backward()
    assert got.shape == (0,)
    assert at.grad.shape == (0, 7)


def test_bfloat16_logits_are_summed_in_float32():
    student, teacher = logits_of(40, 300)
    rounded = student.bfloat16()
    got = forward_kl_topk(student_logits=rounded, **topk_of(teacher, 16, torch.float32))["divergence"]
    torch.testing.assert_close(got.double(), reference(rounded.double(), teacher, 16), rtol=1e-5, atol=1e-5)


def test_chunking_changes_nothing(monkeypatch):
    student, teacher = logits_of(23, 19)
    rows = topk_of(teacher, 5, torch.float64)
    whole = forward_kl_topk(student_logits=student, **rows)
    monkeypatch.setattr(from_logits, "CHUNK_ROWS", 4)
    for name, value in forward_kl_topk(student_logits=student, **rows).items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-15)


def test_diagnostics():
    student, teacher = logits_of(30, 12)
    got = forward_kl_topk(student_logits=student, **topk_of(teacher, 12, torch.float64))
    p_s, p_t = student.softmax(-1), teacher.softmax(-1)
    torch.testing.assert_close(got["student_entropy"], -(p_s * p_s.log()).sum(-1))
    torch.testing.assert_close(got["teacher_entropy"], -(p_t * p_t.log()).sum(-1))
    torch.testing.assert_close(got["argmax_agreement"], (p_s.argmax(-1) == p_t.argmax(-1)).double())


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="share their rows"):
        forward_kl_topk(
            student_logits=torch.zeros(2, 5),
            teacher_ids=torch.zeros(3, 1, dtype=int),
            teacher_log_probs=torch.zeros(3, 1),
        )
    with pytest.raises(ValueError, match="exceeds the student's vocabulary"):
        forward_kl_topk(
            student_logits=torch.zeros(2, 5),
            teacher_ids=torch.zeros(2, 6, dtype=int),
            teacher_log_probs=torch.zeros(2, 6),
        )
