"""Bridge of OPRD: the fit against direct solutions in float64, what is stored, and what is refused."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM

from recipe.trd.oprd import bridge, paired_states, projection_fit
from recipe.trd.oprd.bridge import Bridge, layer_map
from verl_ext.divergence import Projection, hidden_mse

D_STUDENT, D_TEACHER, RANK = 12, 20, 4


def moments_of(student, teacher, sampled=None, batch=17):
    sums = projection_fit.Moments(student_size=student.shape[1], teacher_size=teacher.shape[1], device="cpu")
    sampled = torch.ones(len(student), dtype=torch.bool) if sampled is None else sampled
    for rows in torch.arange(len(student)).split(batch):
        sums.add(student=student[rows], teacher=teacher[rows], sampled=sampled[rows])
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
    ("num_rows", "num_sampled", "rank", "message"),
    [
        (400, 400, 13, r"rank=13 must be in 1..12: the student has 12 coordinates and the teacher 20"),
        (400, 400, 0, r"rank=0 must be in 1..12"),
        (47, 47, 2, "47 response tokens to fit on, and a student of width 12 needs 48 or more: raise num_prompts"),
        (400, 31, 2, "31 tokens for the teacher's principal directions, and rank=2 needs 32 or more: raise max_rows"),
    ],
)
def test_fit_refuses_what_cannot_be_fitted(states, num_rows, num_sampled, rank, message):
    student, teacher = (rows[:num_rows] for rows in states)
    with pytest.raises(ValueError, match=message):
        projection_fit.fit(moments_of(student, teacher, torch.arange(num_rows) < num_sampled), rank=rank)


def test_fit_refuses_states_that_overflowed(states):
    student, teacher = states
    teacher[7, 3] = float("inf")
    with pytest.raises(ValueError, match="not finite: set dtype=bfloat16"):
        projection_fit.fit(moments_of(student, teacher), rank=RANK)


@pytest.mark.parametrize(
    ("num_student", "num_teacher", "expected"),
    [
        (4, 4, (0, 1, 2, 3)),
        (2, 4, (0, 3)),
        (1, 4, (3,)),
        (4, 1, (0, 0, 0, 0)),
        (3, 4, (0, 2, 3)),  # 1.5 is a tie: to the even 2
        (3, 6, (0, 2, 5)),  # 2.5 likewise
        (4, 2, (0, 0, 1, 1)),
        (5, 7, (0, 2, 3, 4, 6)),  # 1.5, 3, 4.5
    ],
)
def test_layers_are_paired_by_relative_depth(num_student, num_teacher, expected):
    assert layer_map(num_student, num_teacher) == expected


def test_layer_map_of_the_papers_pair():
    # Qwen3-1.7B (28 layers) and Qwen3-4B (36), from the equation in the paper's count; no ties here.
    mapped = layer_map(28, 36)
    assert mapped == tuple(round((layer - 1) / 27 * 35) for layer in range(1, 29))
    assert (mapped[0], mapped[-1], len(set(mapped))) == (0, 35, 28)


def test_models_without_layers_are_refused():
    with pytest.raises(ValueError, match="0 and 4 layers"):
        layer_map(0, 4)


def make_model(folder, *, hidden_size, num_layers, seed=0):
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=32,
        hidden_size=hidden_size,
        intermediate_size=16,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=64,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return AutoConfig.from_pretrained(folder)


@pytest.fixture
def pair(tmp_path):
    """Configurations of a student of 2 layers and a teacher of 3, with weights in folders."""
    return {
        "student": make_model(tmp_path / "student", hidden_size=8, num_layers=2),
        "teacher": make_model(tmp_path / "teacher", hidden_size=16, num_layers=3, seed=1),
    }


@pytest.fixture
def fitted(pair):
    projections = tuple(
        Projection(student=torch.randn(RANK, 8), teacher=torch.randn(RANK, 16), teacher_mean=torch.randn(16))
        for _ in range(2)
    )
    return Bridge(
        projections=projections,
        teacher_layers=layer_map(2, 3),
        student=bridge.facts(pair["student"]),
        teacher=bridge.facts(pair["teacher"]),
        explained_variance=(0.8, 0.9),
        held_out_cosine=(0.95, 0.97),
        provenance={"num_rows": 1000, "settings": {"seed": 0}},
    )


def test_what_is_saved_is_loaded(fitted, pair, tmp_path):
    bridge.save(tmp_path / "bridge", fitted)
    bridge.check(tmp_path / "bridge", **pair)
    loaded = bridge.load(tmp_path / "bridge", device="cpu")
    for mine, theirs in zip(loaded.projections, fitted.projections, strict=True):
        assert {name: tensor.tolist() for name, tensor in vars(mine).items()} == {
            name: tensor.tolist() for name, tensor in vars(theirs).items()
        }
    rest = [
        {field.name: getattr(each, field.name) for field in dataclasses.fields(Bridge) if field.name != "projections"}
        for each in (loaded, fitted)
    ]
    assert rest[0] == rest[1]
    assert loaded.rank == RANK


def test_folder_without_a_bridge_is_refused(fitted, pair, tmp_path):
    for read in (lambda: bridge.load(tmp_path, device="cpu"), lambda: bridge.check(tmp_path, **pair)):
        with pytest.raises(ValueError, match=r"holds no bridge.*python -m recipe.trd.fit_bridge"):
            read()
    bridge.save(tmp_path, fitted)
    (tmp_path / bridge.MAPS).unlink()
    with pytest.raises(ValueError, match=r"bridge.safetensors cannot be read"):
        bridge.load(tmp_path, device="cpu")
    with pytest.raises(ValueError, match=r"holds no bridge.safetensors"):
        bridge.check(tmp_path, **pair)


def test_files_that_do_not_belong_together_are_refused(fitted, tmp_path):
    bridge.save(tmp_path, fitted)
    tensors = load_file(tmp_path / bridge.MAPS)
    save_file({**tensors, "student.1": torch.zeros(RANK + 1, 8)}, tmp_path / bridge.MAPS)
    with pytest.raises(ValueError, match="do not belong together"):
        bridge.load(tmp_path, device="cpu")
    save_file({**tensors, "student.1": torch.full((RANK, 8), float("nan"))}, tmp_path / bridge.MAPS)
    with pytest.raises(ValueError, match="not finite"):
        bridge.load(tmp_path, device="cpu")


def test_other_format_is_refused(fitted, tmp_path):
    bridge.save(tmp_path, fitted)
    card = json.loads((tmp_path / bridge.CARD).read_text())
    (tmp_path / bridge.CARD).write_text(json.dumps({**card, "format": 99}))
    with pytest.raises(ValueError, match="another version"):
        bridge.load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("role", "shape", "message"),
    [
        ("student", {"hidden_size": 12, "num_layers": 2}, "has 2 layers of width 12, not 2 of 8"),
        ("teacher", {"hidden_size": 16, "num_layers": 4}, "has 4 layers of width 16, not 3 of 16"),
        ("teacher", {"hidden_size": 16, "num_layers": 3, "seed": 2}, "has other weights"),
        ("student", {"hidden_size": 8, "num_layers": 2, "seed": 2}, "has other weights"),
    ],
)
def test_other_models_are_refused(fitted, pair, tmp_path, role, shape, message):
    bridge.save(tmp_path / "bridge", fitted)
    pair[role] = make_model(tmp_path / "other", **shape)
    with pytest.raises(ValueError, match=rf"{role} .*other, {message}: fit one for this pair with python -m") as error:
        bridge.check(tmp_path / "bridge", **pair)
    assert f"{role}={tmp_path / 'other'}" in str(error.value)


def test_weights_that_are_not_here_are_not_compared(fitted, pair, tmp_path):
    bridge.save(tmp_path / "bridge", dataclasses.replace(fitted, teacher=dataclasses.replace(fitted.teacher)))
    (tmp_path / "teacher" / "model.safetensors").unlink()
    assert bridge.facts(pair["teacher"]).fingerprint is None
    bridge.check(tmp_path / "bridge", **pair)
    assert bridge.weights_fingerprint("nobody/has-this-model") is None
    assert bridge.weights_fingerprint("") is None


def test_fingerprint_is_of_contents_and_not_of_files(pair, tmp_path):
    whole = bridge.weights_fingerprint(str(tmp_path / "student"))
    tensors = load_file(tmp_path / "student" / "model.safetensors")
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    names = sorted(tensors, reverse=True)
    save_file({name: tensors[name] for name in names[:5]}, sharded / "model-00001-of-00002.safetensors")
    save_file({name: tensors[name] for name in names[5:]}, sharded / "model-00002-of-00002.safetensors")
    assert bridge.weights_fingerprint(str(sharded)) == whole
    tensors[names[3]].view(-1)[0] += 1e-3
    save_file(tensors, tmp_path / "student" / "model.safetensors")
    assert bridge.weights_fingerprint(str(tmp_path / "student")) != whole


def test_states_are_those_at_the_response_tokens(pair, tmp_path):
    model = paired_states.load_model(str(tmp_path / "student"), dtype=torch.float32, device=torch.device("cpu"))
    ids = [[3, 4, 5, 6, 7, 8], [9, 10, 11], [1, 2, 3, 4]]
    num_rows = [2, 3, 0]
    found = paired_states.response_states(model, ids, num_rows)
    for layer in range(2):
        alone = [
            model(torch.tensor([sequence]), output_hidden_states=True).hidden_states[1 + layer][0, len(sequence) - n :]
            for sequence, n in zip(ids, num_rows, strict=True)
        ]
        torch.testing.assert_close(found[layer], torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_states_of_both_models_belong_to_the_same_tokens(pair, tmp_path):
    student, teacher = (
        paired_states.load_model(str(tmp_path / role), dtype=torch.float32, device=torch.device("cpu")) for role in pair
    )
    responses = [[5, 6], [7], [8, 9, 10], [11, 12]]
    sequences = paired_states.Sequences(
        student=[[1, *response] for response in responses],
        teacher=[[2, 3, 4, *response] for response in responses],
        num_rows=[2, 1, 2, 2],
    )
    seen = {}
    for states in paired_states.paired_states(student, teacher, sequences, teacher_layers=(0, 2), batch_tokens=10):
        start = 0
        for index in states.sequences:
            rows = slice(start, start := start + sequences.num_rows[index])
            seen[index] = (states.student[1][rows], states.teacher[1][rows])
        assert start == len(states.student[0]) == len(states.teacher[0])
    for index, response in enumerate(responses):
        n = sequences.num_rows[index]
        for got, model, prompt in zip(seen[index], (student, teacher), ([1], [2, 3, 4]), strict=True):
            expected = model.base_model(torch.tensor([[*prompt, *response]])).last_hidden_state[0, -n:]
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([3, 5, 4, 2], [[1, 2], [0, 3]]), ([20, 3], [[0], [1]]), ([5, 5], [[0, 1]]), ([], [])],
)
def test_batches_hold_so_many_tokens(lengths, expected):
    assert paired_states.batches(lengths, batch_tokens=10) == expected
