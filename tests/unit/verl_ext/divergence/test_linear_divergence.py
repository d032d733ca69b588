"""linear_divergence against float64 references written from the equations with plain autograd over whole logits."""

import dataclasses
import math

import pytest
import torch

from verl_ext.divergence import Head, Objective, Term, Tokens, TopK, head, linear, linear_divergence

pytestmark = pytest.mark.usefixtures("way")

V, D_STUDENT, D_TEACHER = 50, 12, 20
FULL = [
    {"divergence": "forward_kl"},
    {"divergence": "reverse_kl"},
    {"divergence": "jsd", "beta": 0.0},
    {"divergence": "jsd", "beta": 0.3},
    {"divergence": "jsd", "beta": 1.0},
]
SAMPLED = [
    {"divergence": "cross_entropy"},
    {"divergence": "sampled_kl", "estimator": "k1"},
    {"divergence": "sampled_kl", "estimator": "k1", "clip_low": 0.2, "clip_high": 0.3},
    {"divergence": "sampled_kl", "estimator": "k2"},
    {"divergence": "sampled_kl", "estimator": "k3"},
]
TOP_K = [
    {**parameters, "support": where, "tail": tail}
    for parameters in ({"divergence": "forward_kl"}, {"divergence": "reverse_kl"}, {"divergence": "jsd", "beta": 0.3})
    for where in ("teacher_topk", "student_topk")
    for tail in ("bucket", "renormalize", "renormalize_teacher", "drop")
]


@dataclasses.dataclass
class World:
    """Random heads and rows in float64; `cast` gives the arguments of linear_divergence in another type."""

    student: Head
    teacher: Head
    tokens: Tokens

    def cast(self, dtype):
        def change(holder, **requires_grad):
            values = {
                name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
                for name, value in vars(holder).items()
            }
            for name, value in requires_grad.items():
                if values[name] is not None:
                    values[name] = values[name].clone().requires_grad_(value)
            return type(holder)(**values)

        student = change(self.student, hidden=True, weight=True, bias=True)
        return student, change(self.teacher), change(self.tokens)


@pytest.fixture
def make_world():
    def build(n=7, v=V, *, bias=False, soft_cap=None, temperature=1.0, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            # Values that float32 has exactly, so that only arithmetic differs.
            return torch.randn(*shape, generator=generator).double()

        def head_of(d):
            options = {"bias": draw(v) if bias else None, "soft_cap": soft_cap, "temperature": temperature}
            return Head(hidden=draw(n, d), weight=(draw(v, d) * 1.5 / d**0.5).float().double(), **options)

        return World(
            student=head_of(D_STUDENT),
            teacher=head_of(D_TEACHER),
            tokens=Tokens(
                weights=torch.rand(n, generator=generator).double() + 0.1,
                ids=torch.randint(v, (n,), generator=generator),
                old_log_probs=-3 * torch.rand(n, generator=generator).double(),
            ),
        )

    return build


def log_probs_of(side):
    logits = side.hidden @ side.weight.T
    if side.bias is not None:
        logits = logits + side.bias
    if side.soft_cap is not None:
        logits = side.soft_cap * torch.tanh(logits / side.soft_cap)
    return (logits / side.temperature).log_softmax(-1)


def on_support(s, t, term):
    """Log-probabilities of the events, both sides."""
    if term.support == "full":
        return s, t
    ids = (t if term.support == "teacher_topk" else s).topk(term.top_k, -1).indices
    outside = torch.ones_like(s).scatter(-1, ids, 0)
    rests = [(x.exp() * outside).sum(-1, keepdim=True).log() for x in (s, t)]
    s, t = s.gather(-1, ids), t.gather(-1, ids)
    if term.tail == "bucket" and term.top_k < outside.shape[-1]:
        return torch.cat([s, rests[0]], -1), torch.cat([t, rests[1]], -1)
    if term.tail == "renormalize":
        s = (s.exp() / s.exp().sum(-1, keepdim=True)).log()
    if term.tail in ("renormalize", "renormalize_teacher"):
        t = (t.exp() / t.exp().sum(-1, keepdim=True)).log()
    return s, t


def entries(s, t, term):
    if term.divergence == "forward_kl" or term.beta == 0:
        return t.exp() * (t - s)
    if term.divergence == "reverse_kl" or term.beta == 1:
        return s.exp() * (s - t)
    mixture = ((1 - term.beta) * s.exp() + term.beta * t.exp()).log()
    return term.beta * t.exp() * (t - mixture) + (1 - term.beta) * s.exp() * (s - mixture)


def sampled_value(s, t, term, tokens):
    s, t = (x.gather(-1, tokens.ids.unsqueeze(-1)).squeeze(-1) for x in (s, t))
    if term.divergence == "cross_entropy":
        return -s
    if term.estimator == "k2":
        return (s - t) ** 2 / 2
    if term.estimator == "k3":
        return (t - s).exp() - 1 - (t - s)
    ratio, advantage = (s - tokens.old_log_probs).exp(), t - tokens.old_log_probs
    if term.clip_low is None:
        return -ratio * advantage
    return torch.maximum(-ratio * advantage, -torch.clamp(ratio, 1 - term.clip_low, 1 + term.clip_high) * advantage)


def reference(student, teacher, tokens, terms):
    """Loss with a graph, and token losses [N], of whole logits."""
    s, t = log_probs_of(student), log_probs_of(teacher)
    total = 0
    for term in terms:
        if term.support == "sampled":
            value = sampled_value(s, t, term, tokens)
        else:
            each = entries(*on_support(s, t, term), term)
            value = (each if term.entry_clip is None else each.clamp(max=term.entry_clip)).sum(-1)
        if term.position_clip is not None:
            value = value.clamp(max=term.position_clip)
        if term.entropy_above is not None:
            value = value * (-(t.exp() * t).sum(-1) > term.entropy_above)
        total = total + term.coef * value
    return (tokens.weights * total).sum(), total


def assert_matches(world, terms, dtype=torch.float32, value_tolerance=1e-6, gradient_tolerance=1e-5, teacher=None):
    student, exact_teacher, tokens = world.cast(torch.float64)
    expected, expected_tokens = reference(student, exact_teacher, tokens, terms)
    expected.backward()
    at, cast_teacher, cast_tokens = world.cast(dtype)
    got = linear_divergence(
        student=at, teacher=teacher or cast_teacher, tokens=cast_tokens, objective=Objective(terms=terms)
    )
    got.loss.backward()
    expected_tokens = expected_tokens.detach()
    size = expected_tokens.abs().max().clamp_min(0.1)
    assert abs(got.loss.double() - expected) <= value_tolerance * (tokens.weights * expected_tokens.abs()).sum() + 1e-9
    assert (got.tokens["token_loss"].double() - expected_tokens).abs().max() <= 2 * value_tolerance * size
    for name in ("hidden", "weight", "bias"):
        if getattr(student, name) is not None:
            exact = getattr(student, name).grad
            error = (getattr(at, name).grad.double() - exact).abs().max()
            assert error <= gradient_tolerance * exact.abs().max().clamp_min(0.01), name


def term_of(parameters, **more):
    where = "sampled" if parameters["divergence"] in ("cross_entropy", "sampled_kl") else "full"
    return Term(**{"support": where, **parameters, **more})


@pytest.mark.parametrize("n", [1, 7, 64])
@pytest.mark.parametrize("parameters", FULL + SAMPLED, ids=str)
def test_value_and_gradient_match_the_equation(make_world, parameters, n):
    assert_matches(make_world(n), (term_of(parameters),))


@pytest.mark.parametrize("top_k", [1, 6, V])
@pytest.mark.parametrize("parameters", TOP_K, ids=lambda p: "-".join(map(str, p.values())))
def test_top_k_supports_match_the_equation(make_world, parameters, top_k):
    assert_matches(make_world(), (term_of(parameters, top_k=top_k),))


@pytest.mark.parametrize("parameters", [*FULL[:2], FULL[3], *SAMPLED, *TOP_K], ids=str)
def test_float64_stays_float64(make_world, parameters):
    term = term_of(parameters, **({"top_k": 6} if "tail" in parameters else {}))
    assert_matches(make_world(), (term,), torch.float64, value_tolerance=1e-12, gradient_tolerance=1e-12)


@pytest.mark.parametrize("parameters", [FULL[0], FULL[1], TOP_K[0], SAMPLED[1]], ids=str)
def test_bias_soft_cap_and_temperature(make_world, parameters):
    term = term_of(parameters, **({"top_k": 6} if "tail" in parameters else {}))
    assert_matches(make_world(bias=True, soft_cap=4.0, temperature=0.7), (term,))
    assert_matches(make_world(bias=True, temperature=1.1), (term,))


@pytest.mark.parametrize("clip", [{"entry_clip": 0.02}, {"position_clip": 1.5}, {"entropy_above": 2.5}], ids=str)
@pytest.mark.parametrize("parameters", [*FULL, TOP_K[0]], ids=str)
def test_clips_and_gate_match_the_equation(make_world, parameters, clip):
    term = term_of(parameters, **clip, **({"top_k": 6} if "tail" in parameters else {}))
    assert_matches(make_world(64), (term,))


def test_the_two_clips_are_two_operators(make_world):
    student, teacher, tokens = make_world(64).cast(torch.float64)

    def run(**clip):
        objective = Objective(terms=(Term(divergence="forward_kl", support="full", **clip),))
        return linear_divergence(student=student, teacher=teacher, tokens=tokens, objective=objective).tokens

    by_entry, by_position = run(entry_clip=0.001), run(position_clip=0.05)
    assert (by_position["token_loss"] >= 0).all()
    assert (by_entry["token_loss"] < 0).any()
    assert (by_position["forward_kl_clipped"] == (by_position["forward_kl"] > 0.05)).all()


def test_eopd_is_a_policy_gradient_everywhere_plus_a_gated_forward_kl(make_world):
    terms = (
        Term(divergence="sampled_kl", support="sampled", estimator="k1", clip_low=0.2, clip_high=0.2),
        Term(
            divergence="forward_kl",
            support="teacher_topk",
            tail="renormalize_teacher",
            top_k=16,
            coef=0.7,
            entropy_above=2.8,
        ),
    )
    world = make_world(64)
    assert_matches(world, terms)
    student, teacher, tokens = world.cast(torch.float32)
    got = linear_divergence(student=student, teacher=teacher, tokens=tokens, objective=Objective(terms=terms)).tokens
    gate = got["forward_kl_gate"]
    assert 0 < gate.mean() < 1
    assert (gate == (got["teacher_entropy"] > 2.8)).all()
    torch.testing.assert_close(got["token_loss"], got["sampled_kl"] + 0.7 * gate * got["forward_kl"])


@pytest.mark.parametrize("divergence", [FULL[0], FULL[1], FULL[3]], ids=str)
@pytest.mark.parametrize("tail", ["bucket", "renormalize", "renormalize_teacher", "drop"])
def test_a_teacher_that_is_only_a_top_k_gives_the_same(make_world, divergence, tail):
    world = make_world()
    log_probs, ids = log_probs_of(world.teacher).topk(6, -1)
    target = TopK(ids=ids.int(), log_probs=log_probs.float())
    assert_matches(
        world, (term_of({**divergence, "support": "teacher_topk", "tail": tail, "top_k": 6}),), teacher=target
    )


def test_a_top_k_is_narrowed_to_its_most_probable(make_world):
    world = make_world()
    log_probs, ids = log_probs_of(world.teacher).topk(20, -1)
    shuffled = torch.randperm(20)
    target = TopK(ids=ids[:, shuffled], log_probs=log_probs[:, shuffled].float())
    term = Term(divergence="forward_kl", support="teacher_topk", tail="renormalize", top_k=5)
    assert_matches(world, (term,), teacher=target)


@pytest.mark.parametrize("parameters", FULL, ids=str)
def test_full_support_is_the_whole_vocabulary_as_top_k(make_world, parameters):
    student, teacher, tokens = make_world(9).cast(torch.float32)
    losses = []
    for more in ({"support": "full"}, {"support": "teacher_topk", "tail": "bucket", "top_k": V}):
        objective = Objective(terms=(Term(**parameters, **more),))
        got = linear_divergence(student=student, teacher=teacher, tokens=tokens, objective=objective)
        losses.append((got.loss, *torch.autograd.grad(got.loss, (student.hidden, student.weight))))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)


# Without these tails, where the two sides do not sum to the same.
NORMALISED = [p for p in FULL + SAMPLED[3:] + TOP_K if p.get("tail") not in ("renormalize_teacher", "drop")]


@pytest.mark.parametrize("parameters", NORMALISED, ids=str)
def test_a_model_with_itself_has_no_divergence(make_world, parameters):
    student, _, tokens = make_world(16).cast(torch.float32)
    term = term_of(parameters, **({"top_k": 6} if "tail" in parameters else {}))
    got = linear_divergence(student=student, teacher=student, tokens=tokens, objective=Objective(terms=(term,)))
    got.loss.backward()
    assert got.tokens["token_loss"].abs().max() < 1e-6
    assert student.hidden.grad.abs().max() < 1e-6
    assert got.tokens["argmax_agreement"].min() == 1


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 1.0])
def test_trl_agrees(make_world, beta):
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    world = make_world(11)
    student, teacher, tokens = world.cast(torch.float64)
    got = linear_divergence(
        student=student,
        teacher=teacher,
        tokens=dataclasses.replace(tokens, weights=torch.ones(11).double() / 11),
        objective=Objective(terms=(Term(divergence="jsd", beta=beta, support="full"),)),
    )
    got.loss.backward()
    ours = student.hidden.grad.clone()
    student.hidden.grad = None
    theirs = gkd.GKDTrainer.generalized_jsd_loss(
        (student.hidden @ student.weight.T)[None],
        (teacher.hidden @ teacher.weight.T)[None],
        labels=torch.zeros(1, 11, dtype=torch.long),
        beta=beta,
    )
    theirs.backward()
    torch.testing.assert_close(got.loss, theirs)
    torch.testing.assert_close(ours, student.hidden.grad)


def step(world, parts):
    """Loss and gradients of a step whose rows come in several calls."""
    student, teacher, tokens = world.cast(torch.float32)
    total = 0.0
    for rows in parts:
        got = linear_divergence(
            student=dataclasses.replace(student, hidden=student.hidden[rows]),
            teacher=dataclasses.replace(teacher, hidden=teacher.hidden[rows]),
            tokens=Tokens(**{name: value[rows] for name, value in vars(tokens).items() if value is not None}),
            objective=Objective(terms=(Term(divergence="reverse_kl", support="full"),)),
        )
        got.loss.backward()
        total += got.loss.item()
    return torch.tensor(total), student.hidden.grad, student.weight.grad


def test_micro_batches_and_sequence_parallel_slices_add_up(make_world):
    world = make_world(24)
    whole = step(world, [slice(None)])
    order = torch.randperm(24)
    for parts in (order.split(1), order.split(7), order.split(12), [order, order[:0]]):
        torch.testing.assert_close(step(world, parts), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "block"), [(1, 1), (5, 2), (24, 7)])
def test_chunks_and_blocks_change_nothing(make_world, monkeypatch, rows, block):
    world = make_world(23)
    whole = step(world, [slice(None)])
    monkeypatch.setitem(linear.CHUNK_BYTES, "cpu", rows * 2 * V * 4)
    monkeypatch.setitem(linear.BLOCK_BYTES, "cpu", block * V * 4)
    torch.testing.assert_close(step(world, [slice(None)]), whole, rtol=1e-5, atol=1e-6)


def test_rows_of_weight_zero_leak_nothing(make_world):
    world = make_world(8)
    kept = torch.tensor([1, 3, 4])
    weights = torch.zeros(8).double().index_copy(0, kept, world.tokens.weights[kept])
    expected = step(world, [kept])
    world.tokens = dataclasses.replace(world.tokens, weights=weights)
    for side in (world.student, world.teacher):
        side.hidden[weights == 0] = float("nan")
    student, teacher, tokens = world.cast(torch.float32)
    objective = Objective(terms=(Term(divergence="reverse_kl", support="full"),))
    got = linear_divergence(student=student, teacher=teacher, tokens=tokens, objective=objective)
    got.loss.backward()
    torch.testing.assert_close(got.loss.detach(), expected[0])
    torch.testing.assert_close(student.weight.grad, expected[2])
    assert (student.hidden.grad[weights == 0] == 0).all()
    for values in got.tokens.values():
        assert (values[weights == 0] == 0).all()


@pytest.mark.parametrize("n", [0, 4])
def test_nothing_counted_is_zero_with_a_graph(make_world, n):
    world = make_world(n, bias=True)
    world.tokens = dataclasses.replace(world.tokens, weights=torch.zeros(n).double())
    student, teacher, tokens = world.cast(torch.float32)
    objective = Objective(terms=(Term(divergence="forward_kl", support="full"),))
    loss = linear_divergence(student=student, teacher=teacher, tokens=tokens, objective=objective).loss
    loss.backward()
    assert loss.item() == 0
    for parameter in (student.hidden, student.weight, student.bias):
        assert (parameter.grad == 0).all()


@pytest.mark.parametrize("parameters", FULL, ids=str)
def test_tokens_that_neither_side_can_say_count_nothing(make_world, parameters):
    world, small = make_world(5, V), None
    forbidden = torch.zeros(V).double()
    forbidden[30:] = float("-inf")
    objective = Objective(terms=(term_of(parameters),))
    results = []
    for small in (False, True):
        student, teacher, tokens = world.cast(torch.float32)
        if not small:
            student, teacher = (dataclasses.replace(side, bias=forbidden.float()) for side in (student, teacher))
        size = 30 if small else None
        results.append(
            linear_divergence(
                student=student, teacher=teacher, tokens=tokens, objective=objective, vocab_size=size
            ).loss
        )
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


def test_padded_heads_equal_heads_without_padding(make_world):
    plain = make_world(6, 40)
    student, teacher, tokens = plain.cast(torch.float64)
    objective = Objective(terms=(Term(divergence="forward_kl", support="full"),))
    linear_divergence(student=student, teacher=teacher, tokens=tokens, objective=objective).loss.backward()
    padded, other, _ = plain.cast(torch.float64)
    padding = torch.full((3, D_STUDENT), float("nan")).double()
    padded = dataclasses.replace(padded, weight=torch.cat([padded.weight.detach(), padding]).requires_grad_())
    other = dataclasses.replace(other, weight=torch.cat([other.weight, torch.randn(7, D_TEACHER).double()]))
    with pytest.raises(ValueError, match=r"43 \(student\) and 47 \(teacher\)"):
        linear_divergence(student=padded, teacher=other, tokens=tokens, objective=objective)
    linear_divergence(student=padded, teacher=other, tokens=tokens, objective=objective, vocab_size=40).loss.backward()
    torch.testing.assert_close(padded.weight.grad[:40], student.weight.grad)
    torch.testing.assert_close(padded.hidden.grad, student.hidden.grad)
    assert (padded.weight.grad[40:] == 0).all()


def test_bfloat16_inputs_are_multiplied_and_summed_in_float32(make_world, monkeypatch):
    monkeypatch.setattr(head, "TILE_ROWS", 16)
    world = make_world(8)
    student, teacher, tokens = world.cast(torch.bfloat16)
    world.student, world.teacher = (
        Head(hidden=side.hidden.detach().double(), weight=side.weight.detach().double()) for side in (student, teacher)
    )
    tokens = dataclasses.replace(tokens, weights=world.tokens.weights.float())
    objective = Objective(terms=(Term(divergence="forward_kl", support="full"),))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = linear_divergence(student=student, teacher=teacher, tokens=tokens, objective=objective)
    got.loss.backward()
    exact, exact_teacher, exact_tokens = world.cast(torch.float64)
    expected, _ = reference(exact, exact_teacher, exact_tokens, objective.terms)
    expected.backward()
    assert got.loss.dtype == torch.float32
    torch.testing.assert_close(got.loss.double(), expected, rtol=2e-6, atol=0)
    assert student.weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(student.weight.grad.double(), exact.weight.grad, rtol=1e-2, atol=1e-4)


def test_upstream_scale_and_single_use(make_world):
    student, teacher, tokens = make_world().cast(torch.float64)
    objective = Objective(terms=(Term(divergence="forward_kl", support="full"),))

    def run():
        return linear_divergence(student=student, teacher=teacher, tokens=tokens, objective=objective).loss

    once = torch.autograd.grad(run(), student.hidden)[0]
    scaled = run() * 3
    torch.testing.assert_close(torch.autograd.grad(scaled, student.hidden, retain_graph=True)[0], 3 * once)
    with pytest.raises(RuntimeError, match="one backward pass"):
        torch.autograd.grad(scaled, student.hidden)


def test_diagnostics(make_world):
    student, teacher, tokens = make_world(30).cast(torch.float64)
    objective = Objective(terms=(Term(divergence="forward_kl", support="full"),), overlap_top_k=5)
    got = linear_divergence(student=student, teacher=teacher, tokens=tokens, objective=objective).tokens
    s, t = log_probs_of(student).detach(), log_probs_of(teacher)
    top_s, top_t = s.topk(5).indices, t.topk(5).indices
    overlap = (top_s.unsqueeze(-1) == top_t.unsqueeze(-2)).any(-1).double().mean(-1)
    expected = {
        "student_entropy": -(s.exp() * s).sum(-1),
        "teacher_entropy": -(t.exp() * t).sum(-1),
        "argmax_agreement": (s.argmax(-1) == t.argmax(-1)).double(),
        "teacher_mass": t.gather(-1, top_t).exp().sum(-1),
        "student_mass": s.gather(-1, top_t).exp().sum(-1),
        "overlap": overlap,
    }
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)


def test_no_row_is_as_wide_as_the_batch(make_world, monkeypatch):
    sizes = []

    def spy(**arguments):
        sizes.append(tuple(arguments["out"].shape))
        return head.raw_logits(**arguments)

    monkeypatch.setattr(linear, "raw_logits", spy)
    monkeypatch.setitem(linear.CHUNK_BYTES, "cpu", 10 * 2 * V * 4)
    step(make_world(64), [slice(None)])
    assert max(sizes) == (10, V)


@pytest.mark.parametrize("gap", [-100.0, -20.5, 20.5, 100.0])
def test_one_unlikely_token_is_not_all_of_k3(gap):
    """D9: a difference beyond 20 nats counts as 20, as in verl, and has no gradient; nothing becomes infinite."""
    student = Head(
        hidden=torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True),
        weight=torch.tensor([[gap], [0.0]], dtype=torch.float64),
    )
    teacher = Head(hidden=torch.zeros(1, 1).double(), weight=torch.zeros(2, 1).double())
    term = Term(divergence="sampled_kl", support="sampled", estimator="k3")
    tokens = Tokens(weights=torch.ones(1).double(), ids=torch.zeros(1, dtype=torch.long))
    got = linear_divergence(student=student, teacher=teacher, tokens=tokens, objective=Objective(terms=(term,)))
    got.loss.backward()
    log_ratio = -math.log(2) - torch.tensor([gap, 0.0], dtype=torch.float64).log_softmax(0)[0].item()
    held = max(-20.0, min(20.0, log_ratio))
    assert got.loss.item() == pytest.approx(math.exp(held) - 1 - held)
    assert held == log_ratio or student.hidden.grad.item() == 0
    assert math.isfinite(student.hidden.grad.item())
