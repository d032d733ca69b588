"""What the chunked divergence refuses, and that it says why."""

import pytest
import torch

from verl_ext.divergence import Head, Objective, Term, Tokens, TopK, linear_divergence

FORWARD = {"divergence": "forward_kl", "support": "full"}


@pytest.mark.parametrize(
    ("term", "reason"),
    [
        ({**FORWARD, "divergence": "kl"}, "is none of"),
        ({**FORWARD, "support": "sampled"}, "it needs one of"),
        ({"divergence": "cross_entropy", "support": "full"}, "it needs one of"),
        ({**FORWARD, "support": "teacher_topk"}, "needs one of"),
        ({**FORWARD, "tail": "bucket"}, "others none"),
        ({**FORWARD, "top_k": 3}, "takes no top_k"),
        ({**FORWARD, "support": "teacher_topk", "tail": "drop", "top_k": 0}, "must be positive"),
        ({**FORWARD, "divergence": "jsd"}, "jsd needs beta"),
        ({**FORWARD, "beta": 0.5}, "jsd needs beta"),
        ({**FORWARD, "divergence": "jsd", "beta": 1.5}, "must lie in"),
        ({"divergence": "sampled_kl", "support": "sampled"}, "needs an estimator"),
        ({"divergence": "sampled_kl", "support": "sampled", "estimator": "k3", "clip_low": 0.2}, "come together"),
        (
            {"divergence": "sampled_kl", "support": "sampled", "estimator": "k3", "clip_low": 0.2, "clip_high": 0.2},
            "belong to the estimator k1",
        ),
        ({"divergence": "sampled_kl", "support": "sampled", "estimator": "k1", "position_clip": 1.0}, "no clip"),
    ],
)
def test_terms_that_mean_nothing_are_refused(term, reason):
    with pytest.raises(ValueError, match=reason):
        Term(**term)


def test_a_divergence_occurs_once():
    with pytest.raises(ValueError, match="once"):
        Objective(terms=(Term(**FORWARD), Term(**FORWARD)))


def head_of(n=2, v=6, d=3):
    return Head(hidden=torch.zeros(n, d), weight=torch.zeros(v, d))


def top_k_of(n=2, k=4):
    return TopK(ids=torch.arange(k).repeat(n, 1), log_probs=torch.full((n, k), -2.0))


@pytest.mark.parametrize(
    ("term", "teacher", "reason"),
    [
        (FORWARD, None, "needs a teacher"),
        (FORWARD, top_k_of(), "whole vocabulary"),
        ({**FORWARD, "support": "student_topk", "tail": "drop", "top_k": 2}, top_k_of(), "whole vocabulary"),
        ({**FORWARD, "support": "teacher_topk", "tail": "drop", "top_k": 5}, top_k_of(), "the teacher gives 4"),
        ({**FORWARD, "support": "teacher_topk", "tail": "drop"}, head_of(), "needs top_k"),
        (
            {**FORWARD, "support": "teacher_topk", "tail": "drop", "entropy_above": 0.8},
            top_k_of(),
            "entropy over the whole vocabulary",
        ),
        ({"divergence": "sampled_kl", "support": "sampled", "estimator": "k2"}, head_of(), "sampled ids"),
        (FORWARD, head_of(n=3), "has 3 positions"),
        (FORWARD, head_of(v=9), "some are padding"),
        (FORWARD, Head(hidden=torch.zeros(2, 4), weight=torch.zeros(6, 3)), "does not fit teacher.weight"),
    ],
)
def test_what_the_teacher_cannot_serve_is_refused(term, teacher, reason):
    with pytest.raises(ValueError, match=reason):
        linear_divergence(
            student=head_of(),
            teacher=teacher,
            tokens=Tokens(weights=torch.ones(2)),
            objective=Objective(terms=(Term(**term),)),
        )


def test_ids_outside_the_real_vocabulary_are_refused():
    term = Term(divergence="forward_kl", support="teacher_topk", tail="drop")
    with pytest.raises(ValueError, match="token 3 does not exist in a vocabulary of 3"):
        linear_divergence(
            student=head_of(),
            teacher=top_k_of(),
            tokens=Tokens(weights=torch.ones(2)),
            objective=Objective(terms=(term,)),
            vocab_size=3,
        )


def test_a_vocabulary_larger_than_a_head_is_refused():
    with pytest.raises(ValueError, match="vocab_size 7 does not fit"):
        linear_divergence(
            student=head_of(),
            teacher=head_of(),
            tokens=Tokens(weights=torch.ones(2)),
            objective=Objective(terms=(Term(**FORWARD),)),
            vocab_size=7,
        )


def test_sampled_kl_with_a_top_k_teacher_needs_its_log_probs_of_the_sampled():
    term = Term(divergence="sampled_kl", support="sampled", estimator="k2")
    with pytest.raises(ValueError, match="give a teacher head"):
        linear_divergence(
            student=head_of(),
            teacher=top_k_of(),
            tokens=Tokens(weights=torch.ones(2), ids=torch.zeros(2, dtype=torch.long)),
            objective=Objective(terms=(term,)),
        )


def test_hard_labels_need_no_teacher():
    student = Head(hidden=torch.zeros(2, 3, requires_grad=True), weight=torch.eye(6, 3))
    got = linear_divergence(
        student=student,
        teacher=None,
        tokens=Tokens(weights=torch.ones(2) / 2, ids=torch.tensor([0, 5])),
        objective=Objective(terms=(Term(divergence="cross_entropy", support="sampled"),)),
    )
    got.loss.backward()
    assert got.loss.item() == pytest.approx(torch.tensor(6.0).log().item())
    torch.testing.assert_close(student.hidden.grad[0], torch.tensor([1 / 6 - 1, 1 / 6, 1 / 6]) / 2)
    assert set(got.tokens) == {"token_loss", "cross_entropy", "student_entropy"}
