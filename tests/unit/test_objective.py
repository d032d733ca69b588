"""The objective inside verl's protocol: two calls a micro-batch, jagged batches, denominators over the global batch.

What depends on the process group (all-reduce of token counts, averaging of gradients) is the engine's and is not
exercised; the numbers that it would pass in are.
"""

from types import SimpleNamespace

import pytest
import torch
from verl.trainer.distillation.losses import get_distillation_loss_fn, get_distillation_loss_settings
from verl.trainer.ppo.padding_utils import construct_minimal_padding_template
from verl.utils import tensordict_utils as tu
from verl.utils import ulysses
from verl.utils.metric import Metric
from verl.workers.config import FSDPActorConfig

from recipe.trd import objective
from recipe.trd.alignment import to_student_rows
from recipe.trd.objective import divergence_per_position, trd_loss
from recipe.trd.rewrite import TopK
from verl_ext.divergence import forward_kl_topk

VOCAB, TOP_K = 13, 4
LENGTHS = ((3, 4), (1, 1), (5, 2), (2, 6))
MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")


def sample_of(num_prompt, num_response, generator, masked=()):
    """One row of a batch as the agent loop writes it to TransferQueue."""
    teacher = torch.randn(num_response, VOCAB, generator=generator).log_softmax(-1).topk(TOP_K, -1)
    rows = TopK(teacher.indices.int().numpy(), teacher.values.numpy())
    ids, log_probs = to_student_rows(rows, num_prompt=num_prompt, num_response=num_response)
    mask = torch.tensor([int(i not in masked) for i in range(num_response)])
    tokens = torch.randint(VOCAB, (num_prompt + num_response,), generator=generator)
    return {
        "prompts": tokens[:num_prompt],
        "responses": tokens[num_prompt:],
        "input_ids": tokens,
        "response_mask": mask,
        "loss_mask": mask,
        "teacher_ids": ids,
        "teacher_logprobs": log_probs,
    }


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    masked = ((1,), (), (), (0, 5))
    return [sample_of(*lengths, generator, rows) for lengths, rows in zip(LENGTHS, masked, strict=True)]


@pytest.fixture
def logits():
    """A leaf [T_b, V] for every sample, in float64."""
    return logits_of(LENGTHS)


def logits_of(lengths, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(sum(pair), VOCAB, generator=generator, dtype=torch.float64).requires_grad_() for pair in lengths
    ]


def batch_of(samples, *, dp_size=1):
    """The samples as TransferQueue returns them, with what verl's engine adds before it cuts micro-batches."""
    columns = {name: [sample[name] for sample in samples] for name in samples[0]}
    jagged = {name: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for name, rows in columns.items()}
    data = tu.get_tensordict(jagged)
    num_tokens = sum(int(sample["loss_mask"].sum()) for sample in samples)
    tu.assign_non_tensor(data, batch_num_tokens=num_tokens, global_batch_size=len(samples), dp_size=dp_size)
    return data


def forward(data, logits):
    """The engine's forward pass: per-token outputs, gathered into jagged tensors."""
    outputs = trd_loss(config=None, distillation_config=None, student_logits=torch.cat(logits).unsqueeze(0), data=data)
    offsets = data["input_ids"].offsets()
    return {
        name: torch.nested.nested_tensor_from_jagged(value.squeeze(0), offsets=offsets)
        for name, value in outputs.items()
    }


def step(samples, logits, *, micro_batches, loss_agg_mode="token-mean", dp_size=1):
    """One optimiser step without the optimiser: (loss, metrics, gradient of every sample's logits)."""
    for leaf in logits:
        leaf.grad = None
    config = FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        loss_agg_mode=loss_agg_mode,
        loss_scale_factor=7,
    )
    data = batch_of(samples, dp_size=dp_size)
    total, metrics = 0.0, {}
    for rows in micro_batches:
        micro = tu.index_select_tensor_dict(data, rows)
        model_output = forward(micro, [logits[row] for row in rows])
        loss, measured = trd_loss(config=config, distillation_config=None, model_output=model_output, data=micro)
        loss.backward()
        total += loss.item()
        for name, metric in measured.items():
            metrics.setdefault(name, Metric(metric.aggregation)).append(metric)
    return total, metrics, [leaf.grad for leaf in logits]


def per_sample(samples, logits):
    """Divergence at every response token of every sample, from slices."""
    values = []
    for sample, leaf in zip(samples, logits, strict=True):
        rows = slice(len(sample["prompts"]) - 1, len(leaf) - 1)
        values.append(
            forward_kl_topk(
                student_logits=leaf[rows],
                teacher_ids=sample["teacher_ids"][rows],
                teacher_log_probs=sample["teacher_logprobs"][rows],
            )
        )
    return values


def test_first_call_equals_a_loop_over_samples(samples, logits):
    got = divergence_per_position(torch.cat(logits).unsqueeze(0), batch_of(samples))
    for name, packed in got.items():
        expected = torch.zeros(sum(map(len, logits)), dtype=torch.float64)
        start = 0
        for sample, leaf, values in zip(samples, logits, per_sample(samples, logits), strict=True):
            expected[start + len(sample["prompts"]) - 1 : start + len(leaf) - 1] = values[name]
            start += len(leaf)
        assert packed.shape == (1, len(expected))
        torch.testing.assert_close(packed[0], expected, rtol=0, atol=0)


def test_loss_is_the_mean_over_the_tokens_that_count(samples, logits):
    loss, _, _ = step(samples, logits, micro_batches=[[0, 1, 2, 3]])
    counted = [
        v["divergence"][s["response_mask"].bool()] for s, v in zip(samples, per_sample(samples, logits), strict=True)
    ]
    assert loss == pytest.approx(torch.cat(counted).mean().item(), rel=1e-12)


@pytest.mark.parametrize("loss_agg_mode", MODES)
@pytest.mark.parametrize("micro_batches", [[[0], [1], [2], [3]], [[0, 1], [2, 3]], [[3, 1, 0], [2]]])
def test_micro_batches_change_neither_loss_nor_gradient(samples, logits, loss_agg_mode, micro_batches):
    whole, _, gradients = step(samples, logits, micro_batches=[[0, 1, 2, 3]], loss_agg_mode=loss_agg_mode)
    expected = [gradient.clone() for gradient in gradients]
    loss, _, gradients = step(samples, logits, micro_batches=micro_batches, loss_agg_mode=loss_agg_mode)
    assert loss == pytest.approx(whole, rel=1e-12)
    for got, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("micro_batches", [[[0, 1, 2, 3, 4, 5]], [[0, 4, 1], [2, 3, 5]], [[0, 1, 2, 3], [4, 5]]])
def test_padding_rows_of_verl_change_neither_loss_nor_gradient(samples, logits, micro_batches):
    whole, _, gradients = step(samples, logits, micro_batches=[[0, 1, 2, 3]])
    expected = [gradient.clone() for gradient in gradients]
    template, _ = construct_minimal_padding_template(samples[0], {}, eos_token_id=2)
    padding = {name: template[name] for name in samples[0]}
    length = len(padding["input_ids"])
    padded_logits = [*logits, *logits_of([(length, 0), (length, 0)], seed=2)]
    loss, _, gradients = step([*samples, padding, padding], padded_logits, micro_batches=micro_batches)
    assert loss == pytest.approx(whole, rel=1e-12)
    for got, wanted in zip(gradients, [*expected, 0, 0], strict=True):
        torch.testing.assert_close(got, wanted + torch.zeros_like(got), rtol=1e-12, atol=1e-15)


def test_ranks_average_to_the_global_batch(samples, logits):
    whole, metrics, _ = step(samples, logits, micro_batches=[[0, 1, 2, 3]])
    ranks = [step(samples, logits, micro_batches=[rows], dp_size=2) for rows in ([0, 3], [1, 2])]
    assert sum(loss for loss, _, _ in ranks) / 2 == pytest.approx(whole, rel=1e-12)
    for name, metric in metrics.items():
        combined = Metric.aggregate_dp([measured[name] for _, measured, _ in ranks])
        assert combined == pytest.approx(metric.aggregate(), rel=1e-6)


def test_metrics_are_token_means_of_the_global_batch(samples, logits):
    values = per_sample(samples, logits)
    for micro_batches in ([[0, 1, 2, 3]], [[1], [0, 2], [3]]):
        _, metrics, _ = step(samples, logits, micro_batches=micro_batches)
        for name in values[0]:
            counted = [v[name][s["response_mask"].bool()] for s, v in zip(samples, values, strict=True)]
            assert metrics[f"trd/{name}"].aggregate() == pytest.approx(torch.cat(counted).mean().item(), rel=1e-6)


def test_gradient_is_zero_exactly_where_no_token_counts(samples, logits):
    _, _, gradients = step(samples, logits, micro_batches=[[0, 1, 2, 3]])
    for sample, gradient in zip(samples, gradients, strict=True):
        counts = torch.zeros(len(gradient), dtype=torch.bool)
        counts[len(sample["prompts"]) - 1 : -1] = sample["response_mask"].bool()
        assert (gradient[~counts] == 0).all()
        assert (gradient[counts].abs().sum(-1) > 0).all()


def test_logits_that_predict_no_response_token_are_not_even_read(samples, logits):
    with torch.no_grad():
        for sample, leaf in zip(samples, logits, strict=True):
            leaf[: len(sample["prompts"]) - 1] = float("nan")
            leaf[-1] = float("nan")
    loss, _, gradients = step(samples, logits, micro_batches=[[0, 1, 2, 3]])
    assert loss > 0
    assert all(gradient.isfinite().all() for gradient in gradients)


def masked(sample):
    blank = torch.zeros_like(sample["response_mask"])
    return {**sample, "response_mask": blank, "loss_mask": blank}


def test_fully_masked_micro_batch_runs_backward_and_adds_nothing(samples, logits):
    # Every rank has to run backward for every micro-batch, or FSDP's collectives wait for ever.
    rows = [masked(samples[0]), masked(samples[1]), *samples[2:]]
    whole, _, _ = step(rows, logits, micro_batches=[[0, 1, 2, 3]])
    loss, _, gradients = step(rows, logits, micro_batches=[[0, 1], [2, 3]])
    assert loss == pytest.approx(whole, rel=1e-12)
    assert all((gradient == 0).all() for gradient in gradients[:2])


@pytest.mark.parametrize("loss_agg_mode", MODES)
def test_fully_masked_batch_is_a_zero_with_a_graph(samples, logits, loss_agg_mode):
    rows = [masked(sample) for sample in samples]
    loss, metrics, gradients = step(rows, logits, micro_batches=[[0, 1], [2, 3]], loss_agg_mode=loss_agg_mode)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)
    assert all(metric.aggregate() == 0 for metric in metrics.values())


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3], [2], [1]], ids=["odd-and-even", "even", "odd", "two"])
def test_slices_of_ulysses_ranks_join_to_the_whole(samples, logits, order, monkeypatch):
    data = batch_of([samples[i] for i in order])
    packed = torch.cat([logits[i] for i in order])
    whole = divergence_per_position(packed.unsqueeze(0), data)
    padded = torch.cat([packed, torch.zeros(len(packed) % 2, VOCAB, dtype=torch.float64)])
    parts = []
    monkeypatch.setattr(ulysses, "_ULYSSES_SEQUENCE_PARALLEL_GROUP", object())
    for rank, part in enumerate(padded.chunk(2)):
        world = SimpleNamespace(get_world_size=lambda group: 2, get_rank=lambda group, rank=rank: rank)
        monkeypatch.setattr(ulysses, "dist", world)
        parts.append(divergence_per_position(part.unsqueeze(0), data))
    for name, expected in whole.items():
        joined = torch.cat([part[name] for part in parts], dim=1)
        torch.testing.assert_close(joined[:, : len(packed)], expected, rtol=0, atol=0)
        assert not joined[:, len(packed) :].any()


def test_rank_without_a_response_row_keeps_its_graph(monkeypatch):
    # A long prompt fills the first rank's slice; its zero must still reach backward.
    data = batch_of([sample_of(9, 3, torch.Generator().manual_seed(0))])
    logits = torch.randn(1, 6, VOCAB).requires_grad_()
    monkeypatch.setattr(ulysses, "_ULYSSES_SEQUENCE_PARALLEL_GROUP", object())
    monkeypatch.setattr(ulysses, "dist", SimpleNamespace(get_world_size=lambda group: 2, get_rank=lambda group: 0))
    got = divergence_per_position(logits, data)["divergence"]
    got.sum().backward()
    assert got.tolist() == [[0.0] * 6]
    assert (logits.grad == 0).all()


def test_bfloat16_logits_give_float32_values(samples, logits):
    packed = torch.cat(logits).detach()
    got = divergence_per_position(packed.bfloat16().unsqueeze(0), batch_of(samples))
    exact = divergence_per_position(packed.bfloat16().double().unsqueeze(0), batch_of(samples))
    for name, value in got.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-4, atol=1e-5)


def test_verl_knows_the_loss_as_one_on_the_teachers_top_k():
    assert get_distillation_loss_fn(objective.LOSS_NAME) is objective.distillation_losses
    assert get_distillation_loss_settings(objective.LOSS_NAME).use_topk
