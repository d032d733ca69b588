"""The policy gradient of linear_divergence against its equation in float64, and what it refuses."""

import dataclasses

import pytest
import torch

from verl_ext.divergence import Head, Objective, Term, Tokens, linear_divergence

pytestmark = pytest.mark.usefixtures("way")

N, V, D = 24, 40, 12
CLIPS = [
    {},
    {"clip_low": 0.2, "clip_high": 0.2},
    {"clip_low": 0.1, "clip_high": 0.4},
    {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 1.3},
]


@pytest.fixture
def world():
    """A head in float64 and tokens with ratios on both sides of every clip, advantages of both signs."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).double()

    student = Head(hidden=draw(N, D), weight=(draw(V, D) / D**0.5).float().double())
    ids = torch.randint(V, (N,), generator=generator)
    sampled = (student.hidden @ student.weight.T).log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    tokens = Tokens(
        weights=torch.rand(N, generator=generator).double() + 0.1,
        ids=ids,
        old_log_probs=(sampled + 0.5 * draw(N)).float().double(),
        advantages=draw(N),
    )
    return student, tokens


def cast(world, dtype):
    student, tokens = world
    leaves = {name: getattr(student, name).to(dtype).requires_grad_() for name in ("hidden", "weight")}
    values = {name: v.to(dtype) if v.is_floating_point() else v for name, v in vars(tokens).items() if v is not None}
    return dataclasses.replace(student, **leaves), Tokens(**values)


def reference(student, tokens, *, coef=1.0, clip_low=None, clip_high=None, dual_clip=None, has_old=True):
    """Weighted sum, and loss of every token, from PPO's equation."""
    log_probs = (student.hidden @ student.weight.T).log_softmax(-1)
    new = log_probs.gather(-1, tokens.ids.unsqueeze(-1)).squeeze(-1)
    ratio = (new - (tokens.old_log_probs if has_old else new.detach())).exp()
    value = -ratio * tokens.advantages
    if clip_low is not None:
        value = torch.maximum(value, -ratio.clamp(1 - clip_low, 1 + clip_high) * tokens.advantages)
    if dual_clip is not None:
        limit = -dual_clip * tokens.advantages
        value = torch.where(tokens.advantages < 0, torch.minimum(value, limit), value)
    return (tokens.weights * coef * value).sum(), value


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("has_old", [True, False])
def test_value_and_gradient_match_the_equation(world, dtype, tolerance, clip, has_old):
    student, tokens = cast(world, dtype)
    if not has_old:
        tokens = dataclasses.replace(tokens, old_log_probs=None)
    term = Term(divergence="policy_gradient", support="sampled", coef=0.7, **clip)
    got = linear_divergence(student=student, teacher=None, tokens=tokens, objective=Objective(terms=(term,)))
    got.loss.backward()
    exact, exact_tokens = cast(world, torch.float64)
    loss, values = reference(exact, exact_tokens, coef=0.7, has_old=has_old, **clip)
    loss.backward()
    torch.testing.assert_close(got.loss.double(), loss.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(got.tokens["policy_gradient"].double(), values.detach(), rtol=tolerance, atol=tolerance)
    for name in ("hidden", "weight"):
        found, expected = getattr(student, name).grad, getattr(exact, name).grad
        torch.testing.assert_close(
            found.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()
        )


def test_a_clipped_ratio_has_no_gradient(world):
    student, tokens = cast(world, torch.float64)
    term = Term(divergence="policy_gradient", support="sampled", clip_low=0.2, clip_high=0.2)
    linear_divergence(student=student, teacher=None, tokens=tokens, objective=Objective(terms=(term,))).loss.backward()
    new = (student.hidden @ student.weight.T).log_softmax(-1).gather(-1, tokens.ids.unsqueeze(-1)).squeeze(-1)
    ratio, advantage = (new - tokens.old_log_probs).exp(), tokens.advantages
    clipped = ((advantage > 0) & (ratio > 1.2)) | ((advantage < 0) & (ratio < 0.8))
    assert 0 < clipped.sum() < N
    assert ((student.hidden.grad == 0).all(-1) == clipped).all()


def test_gradient_is_that_of_the_advantage_times_the_log_prob(world):
    student, tokens = cast(world, torch.float64)
    tokens = dataclasses.replace(tokens, old_log_probs=None)
    term = Term(divergence="policy_gradient", support="sampled")
    got = linear_divergence(student=student, teacher=None, tokens=tokens, objective=Objective(terms=(term,)))
    found = torch.autograd.grad(got.loss, student.hidden)[0]
    new = (student.hidden @ student.weight.T).log_softmax(-1).gather(-1, tokens.ids.unsqueeze(-1)).squeeze(-1)
    expected = torch.autograd.grad(-(tokens.weights * tokens.advantages * new).sum(), student.hidden)[0]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(got.tokens["token_loss"], -tokens.advantages)


def test_advantages_of_positions_that_do_not_count_are_never_read(world):
    student, tokens = cast(world, torch.float32)
    weights, advantages = tokens.weights.clone(), tokens.advantages.clone()
    weights[::2], advantages[::2] = 0, float("nan")
    tokens = dataclasses.replace(tokens, weights=weights, advantages=advantages)
    term = Term(divergence="policy_gradient", support="sampled")
    got = linear_divergence(student=student, teacher=None, tokens=tokens, objective=Objective(terms=(term,)))
    got.loss.backward()
    assert got.loss.isfinite()
    assert (student.hidden.grad[::2] == 0).all()
    assert (student.hidden.grad[1::2].abs().sum(-1) > 0).all()


@pytest.mark.parametrize(
    ("missing", "message"),
    [("advantages", "policy_gradient needs advantages in `tokens`"), ("ids", "needs the sampled ids in `tokens`")],
)
def test_what_a_policy_gradient_needs(world, missing, message):
    student, tokens = cast(world, torch.float32)
    term = Term(divergence="policy_gradient", support="sampled")
    with pytest.raises(ValueError, match=message):
        linear_divergence(
            student=student,
            teacher=None,
            tokens=dataclasses.replace(tokens, **{missing: None}),
            objective=Objective(terms=(term,)),
        )


def test_advantages_are_one_for_each_position(world):
    student, tokens = cast(world, torch.float32)
    short = dataclasses.replace(tokens, advantages=tokens.advantages[:-1])
    term = Term(divergence="policy_gradient", support="sampled")
    with pytest.raises(ValueError, match=rf"tokens.advantages has {N - 1} positions, student.hidden has {N}"):
        linear_divergence(student=student, teacher=None, tokens=short, objective=Objective(terms=(term,)))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"support": "full"}, r"policy_gradient has support 'full'; it needs one of \('sampled',\)"),
        ({"clip_low": 0.2}, "clip_low and clip_high come together"),
        ({"estimator": "k1"}, "sampled_kl needs an estimator"),
        ({"entry_clip": 0.1}, "a policy gradient has no clip of its value"),
        ({"position_clip": 0.1}, "a policy gradient has no clip of its value"),
    ],
    ids=str,
)
def test_parameters_that_a_policy_gradient_has_not(parameters, message):
    with pytest.raises(ValueError, match=message):
        Term(**{"divergence": "policy_gradient", "support": "sampled", **parameters})
