"""The loss of micro-batches of random states: against float64 equations, and the same however the batch is cut.

The engine's part (where the states come from, what FSDP does with gradients) is tested in test_distillation_engine.py.
"""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from verl.trainer.distillation.losses import get_distillation_loss_fn, get_distillation_loss_settings
from verl.trainer.ppo.padding_utils import construct_minimal_padding_template
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric
from verl.workers.config import FSDPActorConfig

from recipe.trd.rewrite.alignment import at_student_positions
from recipe.trd.rewrite.topk import TopKLogProbs
from recipe.trd.training import loss
from recipe.trd.training.loss import DISTILL, HIDDEN, MASKS, POLICY, Loss, trd_loss
from verl_ext.divergence import Head, Objective, Projection, Term
from verl_ext.engine.observe import ResponseStates

V, D_STUDENT, D_TEACHER, NUM_LAYERS, TOP_K = 13, 6, 8, 3, 4
LENGTHS = ((3, 4), (1, 1), (5, 2), (2, 6))
COUNTED = ([1, 0, 1, 1], [1], [1, 1], [0, 1, 1, 1, 1, 0])
MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
CUTS = [[[0], [1], [2], [3]], [[0, 1], [2, 3]], [[3, 1, 0], [2]]]

NO_LOSS = Loss(
    divergence=None,
    policy=None,
    hidden_coef=0.0,
    normalize=False,
    last_layer_only=False,
    projections=None,
    teacher_layers=None,
    swapped=None,
)


def loss_of(*terms, policy=None, **settings):
    divergence = Objective(terms=tuple(Term(**term) for term in terms)) if terms else None
    policy = Objective(terms=(Term(divergence="policy_gradient", support="sampled", **policy),)) if policy else None
    return replace(NO_LOSS, divergence=divergence, policy=policy, **settings)


FULL = {"divergence": "forward_kl", "support": "full"}
TOP = {"divergence": "forward_kl", "support": "teacher_topk", "tail": "bucket"}
LOSSES = {
    "full": ("engine", lambda: loss_of(FULL)),
    "top-k": ("server", lambda: loss_of(TOP)),
    "labels": ("none", lambda: loss_of({"divergence": "cross_entropy", "support": "sampled"})),
    "hidden": ("engine", lambda: loss_of(hidden_coef=2.0)),
    "all of it": ("engine", lambda: loss_of(FULL, policy={"clip_low": 0.2, "clip_high": 0.2}, hidden_coef=0.5)),
}
EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)


@dataclass
class World:
    """Samples of a batch as the trainer has them, and for each states that two models would have at its response."""

    samples: list
    hidden: list
    layers: list
    weight: torch.Tensor
    teacher: Head
    teacher_hidden: list
    teacher_layers: list

    def leaves(self):
        return [self.weight, *self.hidden, *(layer for layers in self.layers for layer in layers)]


def make_world(lengths=LENGTHS, counted=COUNTED, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).double()

    def sample(num_prompt, num_response, mask):
        best = draw(num_response, V).log_softmax(-1).topk(TOP_K, -1)
        top_k = TopKLogProbs(best.indices.int().numpy(), best.values.float().numpy())
        sizes = {"num_prompt": num_prompt, "num_response": num_response}
        ids, log_probs = at_student_positions(top_k, **sizes, top_k=TOP_K)
        tokens, mask = torch.randint(V, (num_prompt + num_response,), generator=generator), torch.tensor(mask)
        return {
            "prompts": tokens[:num_prompt],
            "responses": tokens[num_prompt:],
            "input_ids": tokens,
            "response_mask": mask,
            **dict.fromkeys(MASKS, mask),
            "teacher_ids": ids,
            "teacher_logprobs": log_probs,
            "advantages": draw(num_response),
        }

    sizes = [num_response for _, num_response in lengths]
    return World(
        samples=[sample(*pair, mask) for pair, mask in zip(lengths, counted, strict=True)],
        hidden=[draw(size, D_STUDENT).requires_grad_() for size in sizes],
        layers=[[draw(size, D_STUDENT).requires_grad_() for _ in range(NUM_LAYERS)] for size in sizes],
        weight=draw(V, D_STUDENT).requires_grad_(),
        teacher=Head(hidden=torch.empty(0), weight=draw(V, D_TEACHER)),
        teacher_hidden=[draw(size, D_TEACHER) for size in sizes],
        teacher_layers=[[draw(size, D_STUDENT) for _ in range(NUM_LAYERS)] for size in sizes],
    )


@pytest.fixture
def world():
    return make_world()


def micro_batch(world, chosen, *, dp_size=1, num_sequences=None):
    """The chosen samples with what the engine adds: counts over the whole batch."""
    columns = {name: [world.samples[i][name] for i in chosen] for name in world.samples[0]}
    data = tu.get_tensordict(
        {name: torch.nested.as_nested_tensor(values, layout=torch.jagged) for name, values in columns.items()}
    )
    counts = {f"num_{mask}": sum(int(sample[mask].sum()) for sample in world.samples) for mask in MASKS}
    tu.assign_non_tensor(data, **counts, dp_size=dp_size, global_batch_size=num_sequences or len(world.samples))
    return data


def states_of(world, chosen, scorer, tokens=None):
    """Both models' states at all response tokens of the chosen samples, or at those given."""
    tokens = torch.arange(sum(len(world.hidden[i]) for i in chosen)) if tokens is None else tokens

    def at(states):
        return torch.cat([states[i] for i in chosen])[tokens]

    def layers(states):
        return tuple(at([layers[index] for layers in states]) for index in range(NUM_LAYERS))

    def packed(states, head, layers):
        return ResponseStates(
            hidden=states, head=replace(head, hidden=states), layers=layers, tokens=tokens, layer_tokens=tokens
        )

    student = packed(at(world.hidden), Head(hidden=torch.empty(0), weight=world.weight), layers(world.layers))
    if scorer != "engine":
        return {"student": student, "teacher": None}
    return {
        "student": student,
        "teacher": packed(at(world.teacher_hidden), world.teacher, layers(world.teacher_layers)),
    }


def config_of(mode="token-mean"):
    return FSDPActorConfig(
        strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, loss_agg_mode=mode, loss_scale_factor=7
    )


def step(world, loss, scorer, cut=([0, 1, 2, 3],), *, mode="token-mean", dp_size=1, states=states_of, recorded=None):
    """One update without the optimiser: (loss, {metric: its values}, gradient of every leaf)."""
    for leaf in world.leaves():
        leaf.grad = None
    total, metrics = 0.0, {}
    record = None if recorded is None else recorded.append
    for chosen in cut:
        data = micro_batch(world, chosen, dp_size=dp_size)
        if scorer != "server":
            del data["teacher_ids"], data["teacher_logprobs"]
        value, measured = trd_loss(config_of(mode), None, states(world, chosen, scorer), data, loss=loss, record=record)
        value.backward()
        total += value.item()
        for name, metric in measured.items():
            metrics.setdefault(name, Metric(metric.aggregation)).append(metric)
    return total, metrics, [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in world.leaves()]


def assert_same(found, expected, rtol=1e-6):
    assert found[0] == pytest.approx(expected[0], rel=rtol)
    for name, metric in expected[1].items():
        assert found[1][name].aggregate() == pytest.approx(metric.aggregate(), rel=rtol, abs=1e-7), name
    for ours, theirs in zip(found[2], expected[2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-7)


def reference(world, name):
    """The loss by plain autograd over whole logits, one sample after the other."""
    num_tokens, total = sum(map(sum, COUNTED)), 0
    for i, sample in enumerate(world.samples):
        num_prompt, num_response = len(sample["prompts"]), len(sample["responses"])
        s = (world.hidden[i] @ world.weight.T).log_softmax(-1)
        t = (world.teacher_hidden[i] @ world.teacher.weight.T).log_softmax(-1)
        sampled = s.gather(-1, sample["responses"].unsqueeze(-1)).squeeze(-1)
        kl = (t.exp() * (t - s)).sum(-1)
        pairs = zip(world.layers[i], world.teacher_layers[i], strict=True)
        squared = sum((ours - theirs).square().mean(-1) for ours, theirs in pairs) / NUM_LAYERS
        if name == "full":
            value = kl
        elif name == "labels":
            value = -sampled
        elif name == "hidden":
            value = 2.0 * squared
        elif name == "all of it":
            value = kl + 0.5 * squared - (sampled - sampled.detach()).exp() * sample["advantages"]
        else:
            at = slice(num_prompt - 1, num_prompt + num_response - 1)
            ids, known = sample["teacher_ids"][at].long(), sample["teacher_logprobs"][at].double()
            rest_t, rest_s = 1 - known.exp().sum(-1), 1 - s.exp().gather(-1, ids).sum(-1)
            value = (known.exp() * (known - s.gather(-1, ids))).sum(-1) + rest_t * (rest_t / rest_s).log()
        total = total + (sample["response_mask"] * value).sum() / num_tokens
    return total


@EVERY_LOSS
def test_loss_and_gradient_are_those_of_the_equation(world, name):
    scorer, build = LOSSES[name]
    value, _, gradients = step(world, build(), scorer)
    expected = reference(world, name)
    assert value == pytest.approx(expected.item(), rel=1e-6)
    wanted = torch.autograd.grad(expected, world.leaves(), allow_unused=True)
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs, rtol=1e-5, atol=1e-7)


@EVERY_LOSS
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_micro_batches_change_nothing(world, name, mode, cut):
    scorer, build = LOSSES[name]
    whole = step(world, build(), scorer, mode=mode)
    assert_same(step(world, build(), scorer, cut, mode=mode), whole)


@EVERY_LOSS
def test_ranks_average_to_the_global_batch(world, name):
    scorer, build = LOSSES[name]
    value, metrics, gradients = step(world, build(), scorer)
    ranks = [step(world, build(), scorer, [samples], dp_size=2) for samples in ([0, 3], [1, 2])]
    assert sum(rank[0] for rank in ranks) / 2 == pytest.approx(value, rel=1e-6)
    for metric_name, metric in metrics.items():
        combined = Metric.aggregate_dp([rank[1][metric_name] for rank in ranks])
        assert combined == pytest.approx(metric.aggregate(), rel=1e-6, abs=1e-7)
    for whole, first, second in zip(gradients, *(rank[2] for rank in ranks), strict=True):
        torch.testing.assert_close((first + second) / 2, whole, rtol=1e-6, atol=1e-7)


@EVERY_LOSS
def test_slices_of_sequences_add_up(world, name):
    # Ulysses: two ranks share all sequences, each with some of the tokens, and one of them maybe with none.
    scorer, build = LOSSES[name]
    whole = step(world, build(), scorer)
    for cut in ([0, 1, 2, 3, 4, 5, 6], []), ([12, 0, 7], [1, 2, 3, 4, 5, 6, 8, 9, 10, 11]):
        rest = sorted(set(range(13)) - set(cut[0]))
        parts = []
        for tokens in (sorted(cut[0]), rest):
            sliced = partial(states_of, tokens=torch.tensor(tokens, dtype=torch.int64))
            parts.append(step(world, build(), scorer, states=sliced))
        assert sum(part[0] for part in parts) == pytest.approx(whole[0], rel=1e-6)
        for expected, first, second in zip(whole[2], *(part[2] for part in parts), strict=True):
            torch.testing.assert_close(first + second, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("cut", [[[0, 1, 2, 3]], *CUTS], ids=str)
def test_metrics_are_token_means_of_the_global_batch(world, cut):
    loss = loss_of({**FULL, "position_clip": 1.0}, hidden_coef=1.0)
    recorded = []
    _, metrics, _ = step(world, loss, "engine", cut, recorded=recorded)
    s = [(hidden @ world.weight.T).log_softmax(-1).detach() for hidden in world.hidden]
    t = [(states @ world.teacher.weight.T).log_softmax(-1) for states in world.teacher_hidden]
    kl = [(b.exp() * (b - a)).sum(-1) for a, b in zip(s, t, strict=True)]
    values = {
        "forward_kl": kl,
        "divergence": [value.clamp(max=1.0) for value in kl],
        "forward_kl_clipped": [(value > 1.0).double() for value in kl],
        "student_entropy": [-(a.exp() * a).sum(-1) for a in s],
        "teacher_entropy": [-(b.exp() * b).sum(-1) for b in t],
        "argmax_agreement": [(a.argmax(-1) == b.argmax(-1)).double() for a, b in zip(s, t, strict=True)],
        "hidden_mse": [
            sum((a.detach() - b).square().mean(-1) for a, b in zip(ours, theirs, strict=True)) / NUM_LAYERS
            for ours, theirs in zip(world.layers, world.teacher_layers, strict=True)
        ],
    }
    counted = torch.cat([sample["response_mask"] for sample in world.samples]).bool()
    for name, value in values.items():
        assert metrics[f"trd/{name}"].aggregate() == pytest.approx(torch.cat(value)[counted].mean().item(), rel=1e-5)
    assert sorted(torch.cat(recorded).tolist()) == pytest.approx(
        sorted(torch.cat(values["divergence"])[counted].tolist()), rel=1e-5
    )


def test_hidden_states_alone_are_the_divergence(world):
    loss = loss_of(hidden_coef=2.0)
    recorded = []
    value, metrics, _ = step(world, loss, "engine", CUTS[1], recorded=recorded)
    assert metrics["trd/divergence"].aggregate() == pytest.approx(value / 2, rel=1e-6)
    assert sum(map(len, recorded)) == sum(map(sum, COUNTED))


@pytest.mark.parametrize("cut", [[[0, 1, 2, 3, 4, 5]], [[0, 4, 1], [2, 3, 5]], [[0, 1, 2, 3], [4, 5]]], ids=str)
def test_padding_samples_of_verl_change_nothing(world, cut):
    whole = step(world, LOSSES["top-k"][1](), "server")
    template, _ = construct_minimal_padding_template(world.samples[0], {}, eos_token_id=2)
    template.update(dict.fromkeys(MASKS, template["response_mask"]), advantages=torch.zeros(1).double())
    padding = {name: template[name] for name in world.samples[0]}
    extra = make_world([(1, 1)] * 2, [[0], [0]], seed=1)
    world.samples += [padding, padding]
    for name in ("hidden", "layers", "teacher_hidden", "teacher_layers"):
        getattr(world, name).extend(getattr(extra, name))
    value, metrics, gradients = step(world, LOSSES["top-k"][1](), "server", cut)
    assert value == pytest.approx(whole[0], rel=1e-6)
    torch.testing.assert_close(gradients[:5], whole[2][:5], rtol=1e-6, atol=1e-7)
    assert all((gradient == 0).all() for gradient in gradients[5:7])
    assert metrics["trd/unusable_positions_frac"].aggregate() == 0


def masked(sample):
    return {**sample, **dict.fromkeys(("response_mask", *MASKS), torch.zeros_like(sample["response_mask"]))}


@EVERY_LOSS
def test_fully_masked_micro_batch_runs_backward_and_adds_nothing(world, name):
    # Every rank has to run backward for every micro-batch, or FSDP's collectives wait for ever.
    scorer, build = LOSSES[name]
    world.samples[:2] = map(masked, world.samples[:2])
    whole = step(world, build(), scorer)
    assert_same(step(world, build(), scorer, [[0, 1], [2, 3]]), whole)
    assert all((gradient == 0).all() for gradient in whole[2][1:3])


@EVERY_LOSS
@pytest.mark.parametrize("mode", MODES)
def test_fully_masked_batch_is_a_zero_with_a_graph(world, name, mode):
    scorer, build = LOSSES[name]
    world.samples = list(map(masked, world.samples))
    for i in range(4):
        with torch.no_grad():
            world.teacher_hidden[i].fill_(float("nan"))
    value, metrics, gradients = step(world, build(), scorer, CUTS[1], mode=mode)
    assert value == 0
    assert all((gradient == 0).all() for gradient in gradients)
    assert all(metric.aggregate() == 0 for metric in metrics.values())


@pytest.mark.parametrize(
    "damage",
    [
        {"teacher_logprobs": float("nan")},
        {"teacher_logprobs": 0.1},
        {"teacher_logprobs": -0.1},  # four tokens of probability 0.9
        {"teacher_ids": V},
        {"teacher_ids": -1},
    ],
    ids=str,
)
def test_damaged_positions_are_left_out_and_counted(world, damage):
    sample, at = (
        world.samples[3],
        len(world.samples[3]["prompts"]) - 1 + 2,
    )  # the position of response token 2, which counts
    expected, metrics, gradients = step(world, LOSSES["top-k"][1](), "server")
    for name, value in damage.items():
        sample[name] = sample[name].clone()
        sample[name][at] = value
    loss = LOSSES["top-k"][1]()
    recorded = []
    found, damaged_metrics, damaged = step(world, loss, "server", CUTS[1], recorded=recorded)
    num_tokens = sum(map(sum, COUNTED))
    assert metrics["trd/unusable_positions_frac"].aggregate() == 0
    assert damaged_metrics["trd/unusable_positions_frac"].aggregate() == pytest.approx(1 / num_tokens)
    # The other positions weigh what they did.
    assert (damaged[4][2] == 0).all()
    for ours, theirs in zip(damaged[1:4], gradients[1:4], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    assert 0 < found < expected
    assert sum(map(len, recorded)) == num_tokens - 1


def test_damage_where_nothing_counts_is_nobodys_business(world):
    expected = step(world, LOSSES["top-k"][1](), "server")
    sample = world.samples[0]
    sample["teacher_logprobs"][len(sample["prompts"])] = float("nan")  # response token 1 is masked
    assert_same(step(world, LOSSES["top-k"][1](), "server"), expected)


def test_divergence_and_task_reward_on_samples_of_their_own(world):
    # Samples 0 and 1 are y_r, samples 2 and 3 the y_o beside them.
    for i, sample in enumerate(world.samples):
        other = torch.zeros_like(sample["response_mask"])
        world.samples[i] = {
            **sample,
            POLICY: sample[POLICY] if i > 1 else other,
            DISTILL: other if i > 1 else sample[DISTILL],
        }
    both = loss_of(FULL, policy={"coef": 0.7})
    recorded = []
    value, metrics, gradients = step(world, both, "engine", CUTS[0], recorded=recorded)
    parts = [step(world, loss, "engine") for loss in (loss_of(FULL), loss_of(policy={"coef": 0.7}))]
    assert value == pytest.approx(sum(part[0] for part in parts), rel=1e-6)
    for whole, first, second in zip(gradients, *(part[2] for part in parts), strict=True):
        torch.testing.assert_close(first + second, whole, rtol=1e-6, atol=1e-8)
    advantages = torch.cat([sample["advantages"][sample[POLICY].bool()] for sample in world.samples])
    assert metrics["trd/policy_loss"].aggregate() == pytest.approx(-advantages.mean().item(), rel=1e-5)
    assert len(advantages) == 6
    assert sum(map(len, recorded)) == 4  # quantiles are of the divergence, over the samples of y_r


def test_ratio_to_the_policy_that_sampled(world):
    generator = torch.Generator().manual_seed(5)
    for sample in world.samples:
        sample["old_log_probs"] = -2 - torch.rand(len(sample["responses"]), generator=generator).double()
    value, _, _ = step(world, loss_of(policy={"clip_low": 0.2, "clip_high": 0.3}), "none", CUTS[2])
    total = 0.0
    for hidden, sample in zip(world.hidden, world.samples, strict=True):
        new = (hidden @ world.weight.T).log_softmax(-1).gather(-1, sample["responses"].unsqueeze(-1)).squeeze(-1)
        ratio, advantage = (new - sample["old_log_probs"]).exp(), sample["advantages"]
        each = torch.maximum(-ratio * advantage, -ratio.clamp(0.8, 1.3) * advantage)
        total += (each * sample[POLICY]).sum().item()
    assert value == pytest.approx(total / sum(map(sum, COUNTED)), rel=1e-6)


def test_padding_of_the_larger_head_takes_no_part(world):
    expected = step(world, loss_of(FULL), "engine")
    for num_student, num_teacher in ((0, 5), (3, 0)):
        wider = make_world()
        padding = torch.randn(num_teacher, D_TEACHER).double() * 10
        wider.teacher = replace(wider.teacher, weight=torch.cat([wider.teacher.weight, padding]))
        padding = torch.randn(num_student, D_STUDENT).double() * 10
        wider.weight = torch.cat([wider.weight.detach(), padding]).requires_grad_()
        value, _, gradients = step(wider, loss_of(FULL), "engine")
        assert value == pytest.approx(expected[0], rel=1e-9)
        torch.testing.assert_close(gradients[0][:V], expected[2][0])
        assert (gradients[0][V:] == 0).all()


def test_ends_of_turn_trade_places_in_the_teachers_distribution(world):
    expected = step(world, loss_of(FULL), "engine")
    order = torch.arange(V)
    order[[2, 11]] = torch.tensor([11, 2])
    world.teacher = replace(world.teacher, weight=world.teacher.weight[order])
    assert step(world, loss_of(FULL), "engine")[0] != pytest.approx(expected[0], rel=1e-3)
    assert_same(step(world, loss_of(FULL, swapped=(2, 11)), "engine"), expected)


def squared(world, pairs, maps=None):
    """Mean over counted tokens and layer pairs of the squared distance, divided by d without maps."""
    num_tokens, total = sum(map(sum, COUNTED)), 0.0
    for i, sample in enumerate(world.samples):
        for index, (ours, theirs) in enumerate(pairs):
            a, b = world.layers[i][ours], world.teacher_layers[i][theirs]
            if maps is not None:
                a, b = a @ maps[index].student.T, (b - maps[index].teacher_mean) @ maps[index].teacher.T
            distance = (a - b).square().sum(-1) / (1 if maps is not None else D_STUDENT)
            total += (distance * sample[HIDDEN]).sum().item() / num_tokens / len(pairs)
    return total


def test_layers_that_are_compared(world):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).double()

    maps = tuple(
        Projection(student=draw(2, D_STUDENT), teacher=draw(2, D_STUDENT), teacher_mean=draw(D_STUDENT))
        for _ in range(NUM_LAYERS)
    )
    bridge = {"projections": maps, "teacher_layers": (0, 0, 2)}
    found = {
        "last": loss_of(hidden_coef=1.0, last_layer_only=True),
        "bridge": loss_of(hidden_coef=1.0, **bridge),
        "last of the bridge": loss_of(hidden_coef=1.0, last_layer_only=True, **bridge),
    }
    expected = {
        "last": squared(world, [(2, 2)]),
        "bridge": squared(world, [(0, 0), (1, 0), (2, 2)], maps),
        "last of the bridge": squared(world, [(2, 2)], maps[-1:]),
    }
    assert {name: step(world, loss, "engine", CUTS[1])[0] for name, loss in found.items()} == pytest.approx(expected)


def test_bfloat16_states_give_a_float32_loss(world):
    narrow = replace(
        world,
        hidden=[states.detach().bfloat16().requires_grad_() for states in world.hidden],
        weight=world.weight.detach().bfloat16().requires_grad_(),
    )
    data = micro_batch(narrow, [0, 1, 2, 3])
    value, _ = trd_loss(config_of(), None, states_of(narrow, [0, 1, 2, 3], "server"), data, loss=loss_of(TOP))
    exact = replace(
        world,
        hidden=[states.detach().double().requires_grad_() for states in narrow.hidden],
        weight=narrow.weight.detach().double().requires_grad_(),
    )
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(step(exact, loss_of(TOP), "server")[0], rel=1e-5)


def test_verl_knows_the_loss_as_one_on_the_teachers_top_k():
    assert get_distillation_loss_fn(loss.LOSS_NAME) is trd_loss
    assert get_distillation_loss_settings(loss.LOSS_NAME).use_topk
