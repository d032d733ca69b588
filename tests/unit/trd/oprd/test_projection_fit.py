"""Maps of one pair of layers against direct solutions in float64, and what cannot be fitted."""

import pytest
import torch

from recipe.trd.oprd import projection_fit
from verl_ext.divergence import hidden_mse

D_STUDENT, D_TEACHER, RANK = 12, 20, 4


def moments_of(student, teacher, sampled=None, batch=17):
    sums = projection_fit.Moments(student_size=student.shape[1], teacher_size=teacher.shape[1], device="cpu")
    sampled = torch.ones(len(student), dtype=torch.bool) if sampled is None else sampled
    for chosen in torch.arange(len(student)).split(batch):
        sums.add(student=student[chosen], teacher=teacher[chosen], sampled=sampled[chosen])
    return sums


@pytest.fixture
def states():
    """Two models' states that share a part, with a mean and one coordinate that is far larger than the others."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    common = draw(400, 6) * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    student = common @ draw(6, D_STUDENT) + 0.3 * draw(400, D_STUDENT)
    teacher = common @ draw(6, D_TEACHER) + 0.3 * draw(400, D_TEACHER) + 2
    student[:, 3] = 3000 + 10 * student[:, 3]
    return student, teacher


def test_principal_directions_are_those_of_the_singular_value_decomposition(states):
    _, teacher = states
    sampled = torch.arange(400) % 3 != 0
    space = projection_fit.principal_space(moments_of(*states, sampled), rank=RANK)
    centred = teacher[sampled] - teacher[sampled].mean(0)
    _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(space.mean, teacher[sampled].mean(0))
    # Signs of directions are free.
    torch.testing.assert_close((space.directions @ directions[:RANK].T).abs(), torch.eye(RANK).double())
    expected = (lengths[:RANK].square().sum() / lengths.square().sum()).item()
    assert space.explained_variance == pytest.approx(expected)
    _, approximate, _ = torch.pca_lowrank(teacher[sampled], q=RANK, niter=20)
    torch.testing.assert_close(lengths[:RANK], approximate)


def test_student_map_is_the_least_squares_solution(states):
    student, teacher = states
    sums = moments_of(*states)
    space = projection_fit.principal_space(sums, rank=RANK)
    target = (teacher - space.mean) @ space.directions.T
    expected = torch.linalg.lstsq(student, target, driver="gelsd").solution.T

    def error(maps):
        return (student @ maps.T - target).square().sum().item()

    found = projection_fit.student_map(sums, space)
    # The ridge costs next to nothing: of what Eq. 13 minimises, and of the map itself.
    assert error(expected) <= error(found) <= (1 + 1e-6) * error(expected)
    torch.testing.assert_close(student @ found.T, student @ expected.T, rtol=0, atol=1e-3 * target.std().item())


def test_gradient_descent_as_in_the_paper_does_not_get_lower(states):
    student, teacher = states
    student = student.clone()
    student[:, 3] = (student[:, 3] - 3000) / 10  # descent on badly scaled coordinates would not end
    maps, _ = projection_fit.fit(moments_of(student, teacher), rank=RANK)
    target = (teacher - maps.teacher_mean.double()) @ maps.teacher.double().T
    descended = torch.zeros(RANK, D_STUDENT, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([descended], max_iter=200, line_search_fn="strong_wolfe")

    def objective(weight):
        return (student @ weight.T - target).square().sum(1).mean()

    def closure():
        optimizer.zero_grad()
        loss = objective(descended)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert objective(maps.student.double()).item() <= objective(descended).item() * (1 + 1e-5)


def test_pair_with_a_linear_relation_is_recovered():
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(600, D_STUDENT, generator=generator)
    student -= student[:400].mean(0)
    # The teacher's mean is taken off, so that its constant part does not matter.
    teacher = (student @ torch.randn(D_STUDENT, D_TEACHER, generator=generator)).double() + 100
    maps, _ = projection_fit.fit(moments_of(student[:400], teacher[:400]), rank=RANK)
    cosines = projection_fit.cosines(maps, student=student[400:], teacher=teacher[400:])
    torch.testing.assert_close(cosines, torch.ones(200).double(), rtol=0, atol=1e-6)
    # What stage 2 minimises is then 0 from the start.
    weights = torch.full((200,), 1 / 200)
    second_stage = hidden_mse(
        student=[student[400:]], teacher=[teacher[400:].float()], weights=weights, normalize=True, projections=[maps]
    )
    assert second_stage["loss"].item() < 1e-6
    torch.testing.assert_close(second_stage["hidden_cosine"].double(), cosines, rtol=0, atol=1e-5)


def test_unrelated_states_reach_no_cosine():
    generator = torch.Generator().manual_seed(2)
    student = torch.randn(4000, D_STUDENT, generator=generator)
    teacher = torch.randn(4000, D_TEACHER, generator=generator)
    maps, _ = projection_fit.fit(moments_of(student[:2000], teacher[:2000]), rank=RANK)
    assert abs(projection_fit.cosines(maps, student=student[2000:], teacher=teacher[2000:]).mean()) < 0.05


def test_coordinate_that_is_always_zero_is_left_out(states):
    student, teacher = states
    student[:, 5] = 0
    maps, _ = projection_fit.fit(moments_of(student, teacher), rank=RANK)
    assert (maps.student[:, 5] == 0).all()
    assert maps.student.isfinite().all()


@pytest.mark.parametrize(
    ("num_positions", "num_sampled", "rank", "message"),
    [
        (400, 400, 13, r"rank=13 must be in 1..12: the student has 12 coordinates and the teacher 20"),
        (400, 400, 0, r"rank=0 must be in 1..12"),
        (47, 47, 2, "47 response tokens to fit on, and a student of width 12 needs 48 or more: raise num_prompts"),
        (400, 31, 2, "31 tokens for the teacher's principal directions, and rank=2 needs 32 or more: raise max_rows"),
    ],
)
def test_fit_refuses_what_cannot_be_fitted(states, num_positions, num_sampled, rank, message):
    student, teacher = (values[:num_positions] for values in states)
    with pytest.raises(ValueError, match=message):
        projection_fit.fit(moments_of(student, teacher, torch.arange(num_positions) < num_sampled), rank=rank)


def test_fit_refuses_states_that_overflowed(states):
    student, teacher = states
    teacher[7, 3] = float("inf")
    with pytest.raises(ValueError, match="not finite: set dtype=bfloat16"):
        projection_fit.fit(moments_of(student, teacher), rank=RANK)
