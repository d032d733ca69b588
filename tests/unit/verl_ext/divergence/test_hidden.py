"""hidden_mse against a float64 reference written from the equations with plain autograd."""

import pytest
import torch

from verl_ext.divergence import Projection, hidden, hidden_mse

D_STUDENT, D_TEACHER, RANK = 12, 20, 5
VARIANTS = [(normalize, projected) for normalize in (False, True) for projected in (False, True)]
EVERY_VARIANT = pytest.mark.parametrize(
    ("normalize", "projected"), VARIANTS, ids=["raw", "raw-projected", "normalized", "normalized-projected"]
)


@pytest.fixture
def make_case():
    """Random layers, weights and maps in float64, of values that float32 has exactly."""

    def build(num_positions, *, num_layers=2, projected=False, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator).double()

        width = D_TEACHER if projected else D_STUDENT
        maps = [
            Projection(student=draw(RANK, D_STUDENT), teacher=draw(RANK, D_TEACHER), teacher_mean=draw(D_TEACHER))
            for _ in range(num_layers)
        ]
        return {
            "student": [draw(num_positions, D_STUDENT) for _ in range(num_layers)],
            "teacher": [draw(num_positions, width) for _ in range(num_layers)],
            "weights": torch.rand(num_positions, generator=generator).double() + 0.1,
            "projections": maps if projected else None,
        }

    return build


def run(case, *, normalize, dtype=torch.float64):
    """hidden_mse, and its gradient for each layer of the student."""
    student = [layer.to(dtype).clone().requires_grad_() for layer in case["student"]]
    result = hidden_mse(
        student=student,
        teacher=[layer.to(dtype) for layer in case["teacher"]],
        weights=case["weights"].to(torch.promote_types(dtype, torch.float32)),
        normalize=normalize,
        projections=case["projections"],
    )
    result["loss"].backward()
    return result, [layer.grad for layer in student]


def reference(case, *, normalize):
    """Eq. 6 and Eq. 14-15 of arXiv 2606.06021, position by position, on those that count."""
    student = [layer.double().clone().requires_grad_() for layer in case["student"]]
    distances, cosines = [], []
    for index, (student_layer, teacher_layer) in enumerate(zip(student, case["teacher"], strict=True)):
        student_layer, teacher_layer, size = student_layer, teacher_layer.double(), student_layer.shape[1]
        if case["projections"] is not None:
            maps = case["projections"][index]
            student_layer, teacher_layer, size = (
                student_layer @ maps.student.T,
                (teacher_layer - maps.teacher_mean) @ maps.teacher.T,
                1,
            )
            # The authors' scripts take the mean over the r entries where vectors are scaled to length 1.
            size = student_layer.shape[1] if normalize else 1
        cosines.append(torch.cosine_similarity(student_layer, teacher_layer, dim=-1))
        if normalize:
            student_layer, teacher_layer = (
                states / states.pow(2).sum(-1, keepdim=True).sqrt() for states in (student_layer, teacher_layer)
            )
        distances.append((student_layer - teacher_layer).pow(2).sum(-1) / size)
    distance, cosine = torch.stack(distances).mean(0), torch.stack(cosines).mean(0)
    loss = (case["weights"] * distance).sum()
    loss.backward()
    return loss.detach(), distance.detach(), cosine.detach(), [layer.grad for layer in student]


@EVERY_VARIANT
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("num_positions", [1, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_value_and_gradient_are_those_of_the_equations(
    make_case, dtype, num_positions, num_layers, normalize, projected
):
    case = make_case(num_positions, num_layers=num_layers, projected=projected)
    loss, distance, cosine, gradients = reference(case, normalize=normalize)
    got, got_gradients = run(case, normalize=normalize, dtype=dtype)
    rtol = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(got["loss"].double(), loss, rtol=rtol, atol=0)
    torch.testing.assert_close(got["hidden_mse"].double(), distance, rtol=5 * rtol, atol=0)
    torch.testing.assert_close(got["hidden_cosine"].double(), cosine, rtol=0, atol=2 * rtol)
    for mine, expected in zip(got_gradients, gradients, strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(mine.double(), expected, rtol=0, atol=10 * rtol * scale)


def test_two_values_by_hand():
    student, teacher = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [4.0, 3.0]])
    weights = torch.tensor([0.5, 1.0])
    raw = hidden_mse(student=[student], teacher=[teacher], weights=weights, normalize=False)
    assert raw["hidden_mse"].tolist() == [0.5, 1.0]
    assert raw["loss"].item() == pytest.approx(1.25)
    # Directions (0.6, 0.8) and (0.8, 0.6): squared distance 0.08, cosine 0.96.
    directions = hidden_mse(student=[student[1:]], teacher=[teacher[1:]], weights=weights[1:], normalize=True)
    assert directions["loss"].item() == pytest.approx(0.04)
    assert directions["hidden_cosine"].item() == pytest.approx(0.96)
    # A map onto the second axis, whose mean 1 is taken off the teacher's: (4 - (3 - 1))^2, not divided by anything.
    axis = torch.tensor([[0.0, 1.0]])
    maps = Projection(student=axis, teacher=axis, teacher_mean=torch.ones(2))
    mapped = hidden_mse(
        student=[student[1:]], teacher=[teacher[1:]], weights=weights[1:], normalize=False, projections=[maps]
    )
    assert mapped["loss"].item() == pytest.approx(4.0)


@pytest.mark.parametrize("normalize", [False, True])
def test_distance_of_a_model_to_itself_is_zero(make_case, normalize):
    case = make_case(7)
    case["teacher"] = case["student"]
    got, gradients = run(case, normalize=normalize, dtype=torch.float32)
    assert got["loss"].item() == 0
    assert all(gradient.abs().max() == 0 for gradient in gradients)
    torch.testing.assert_close(got["hidden_cosine"], torch.ones(7), rtol=0, atol=1e-6)


@EVERY_VARIANT
def test_positions_without_weight_are_never_touched(make_case, normalize, projected):
    case = make_case(7, projected=projected)
    skipped = torch.tensor([0, 3, 6])
    case["weights"][skipped] = 0
    loss, _, _, gradients = reference(case, normalize=normalize)
    for layer in (*case["student"], *case["teacher"]):
        layer[skipped] = float("nan")
    got, got_gradients = run(case, normalize=normalize)
    torch.testing.assert_close(got["loss"], loss)
    for mine, expected in zip(got_gradients, gradients, strict=True):
        torch.testing.assert_close(mine, expected)
        assert (mine[skipped] == 0).all()
    assert (got["hidden_mse"][skipped] == 0).all()
    assert (got["hidden_cosine"][skipped] == 0).all()


@EVERY_VARIANT
@pytest.mark.parametrize("num_positions", [0, 5])
def test_no_position_with_weight_gives_zero_with_a_graph(make_case, num_positions, normalize, projected):
    case = make_case(num_positions, projected=projected)
    case["weights"].zero_()
    got, gradients = run(case, normalize=normalize, dtype=torch.float32)
    assert got["loss"].item() == 0
    assert all(gradient.shape == (num_positions, D_STUDENT) and (gradient == 0).all() for gradient in gradients)


@EVERY_VARIANT
def test_positions_may_be_split_in_any_way(make_case, monkeypatch, normalize, projected):
    case = make_case(64, projected=projected)
    whole, gradients = run(case, normalize=normalize)
    monkeypatch.setattr(hidden, "CHUNK_POSITIONS", 3)
    chunked, chunked_gradients = run(case, normalize=normalize)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(chunked_gradients, gradients)
    parts = []
    for positions in torch.arange(64).split([1, 0, 40, 23]):
        part = {name: [layer[positions] for layer in case[name]] for name in ("student", "teacher")}
        parts.append(run({**case, **part, "weights": case["weights"][positions]}, normalize=normalize))
    torch.testing.assert_close(sum(result["loss"] for result, _ in parts), whole["loss"])
    for index, gradient in enumerate(gradients):
        torch.testing.assert_close(torch.cat([grads[index] for _, grads in parts]), gradient)


@EVERY_VARIANT
def test_bfloat16_states_are_compared_in_float32(make_case, normalize, projected):
    case = make_case(64, projected=projected)
    for name in ("student", "teacher"):
        case[name] = [layer.bfloat16().double() for layer in case[name]]
    loss, _, _, gradients = reference(case, normalize=normalize)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, got_gradients = run(case, normalize=normalize, dtype=torch.bfloat16)
    assert got["loss"].dtype == got["hidden_mse"].dtype == torch.float32
    torch.testing.assert_close(got["loss"].double(), loss, rtol=1e-6, atol=0)
    for mine, expected in zip(got_gradients, gradients, strict=True):
        assert mine.dtype == torch.bfloat16
        # Rounded once, at the end.
        torch.testing.assert_close(mine.double(), expected, rtol=2**-8, atol=1e-6 * expected.abs().max().item())


def test_gradient_takes_the_scale_of_what_comes_after(make_case):
    case = make_case(64)
    student = [layer.bfloat16().requires_grad_() for layer in case["student"]]
    plain = [layer.detach().clone().requires_grad_() for layer in student]
    others = {"teacher": [layer.bfloat16() for layer in case["teacher"]], "normalize": False}
    weights = case["weights"].float()
    (0.3 * hidden_mse(student=student, weights=weights, **others)["loss"]).backward()
    hidden_mse(student=plain, weights=0.3 * weights, **others)["loss"].backward()
    for scaled, expected in zip(student, plain, strict=True):
        # Two roundings at most, and no bias: a scale rounded to bfloat16 would move every value the same way.
        torch.testing.assert_close(scaled.grad, expected.grad, rtol=2**-7, atol=0)
        sizes = [gradient.double().abs().sum().item() for gradient in (scaled.grad, expected.grad)]
        assert sizes[0] == pytest.approx(sizes[1], rel=3e-4)


def test_teacher_gets_no_gradient_and_the_student_one_backward_pass(make_case):
    case = make_case(3)
    student = [layer.requires_grad_() for layer in case["student"]]
    teacher = [layer.requires_grad_() for layer in case["teacher"]]
    loss = hidden_mse(student=student, teacher=teacher, weights=case["weights"], normalize=False)["loss"]
    loss.backward(retain_graph=True)
    assert all(layer.grad is None for layer in teacher)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()


def test_no_gradient_is_formed_where_none_is_wanted(make_case):
    case = make_case(3)
    with torch.no_grad():
        result = hidden_mse(normalize=False, **case)
    loss, *_ = reference(case, normalize=False)
    assert not result["loss"].requires_grad
    torch.testing.assert_close(result["loss"], loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda case: case.update(student=[]), "0 student layers against 2 teacher layers"),
        (lambda case: case["teacher"].pop(), "2 student layers against 1 teacher layers"),
        (lambda case: case["projections"].pop(), "1 projections for 2 layers"),
        (lambda case: case.update(projections=None), "models of other sizes need projections"),
        (lambda case: case["teacher"].__setitem__(1, torch.zeros(6, D_TEACHER)), "layer 1: 7 positions .* 6 of"),
        (lambda case: case.update(weights=torch.ones(5)), "5 weights"),
        (lambda case: case["student"].__setitem__(1, torch.zeros(7, 9)), r"layer 1: .* do not fit the projection"),
    ],
)
def test_what_does_not_fit_together_is_refused(make_case, change, message):
    case = make_case(7, projected=True)
    change(case)
    with pytest.raises(ValueError, match=message):
        hidden_mse(normalize=False, **case)


def test_layers_of_another_size_are_refused_wherever_they_stand(make_case):
    case = make_case(7)
    case["teacher"][1] = torch.zeros(7, D_TEACHER)
    with pytest.raises(ValueError, match="need projections"):
        hidden_mse(normalize=False, **case)
