"""Which tokens of a batch count for which part of the loss."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass

from recipe.trd.training.loss import DISTILL, HIDDEN, MASKS, POLICY, add_masks

CONFIGS = Path(__file__).parents[4] / "configs"
RESPONSES = [[1, 1, 0, 1], [1], [0, 0, 0], [1, 1, 1, 1, 1, 0]]


@pytest.fixture(scope="module")
def configs():
    """The `trd` node of some methods."""

    def build(method):
        overrides = [f"method={method}", "model=tiny", "data=tiny_world", "cluster=cpu"]
        return omega_conf_to_dataclass(compose("trd_trainer", overrides=overrides).trd)

    with initialize_config_dir(str(CONFIGS), version_base=None):
        return {method: build(method) for method in ("trd_opd", "trd_grpo", "oprd")}


def batch_of(samples, is_policy=None, layout=torch.jagged):
    """A batch as far as masks need it; the responses' ids are their masks, shifted by 10."""
    masks = [torch.tensor(sample, dtype=torch.int64) for sample in samples]
    columns = {"response_mask": masks, "responses": [mask + 10 for mask in masks]}
    data = tu.get_tensordict(
        {name: torch.nested.as_nested_tensor(values, layout=torch.jagged) for name, values in columns.items()}
    )
    if is_policy is not None:
        column = torch.tensor(is_policy).unsqueeze(-1)
        data["is_policy"] = column if layout is None else torch.nested.as_nested_tensor(list(column), layout=layout)
    return data


def masks_of(trd, samples=RESPONSES, is_policy=None, **options):
    data = batch_of(samples, is_policy, **options)
    add_masks(data, trd)
    for name in MASKS:
        assert data[name].dtype == torch.int64
        assert data[name].offsets().tolist() == data["responses"].offsets().tolist()
    return {name: [sample.tolist() for sample in data[name].unbind()] for name in MASKS}


def nothing(samples=RESPONSES):
    return [[0] * len(sample) for sample in samples]


def test_all_counted_tokens_and_no_task_reward(configs):
    got = masks_of(configs["trd_opd"])
    assert got == {DISTILL: RESPONSES, HIDDEN: RESPONSES, POLICY: nothing()}


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("first", [[1, 1, 0, 0], [1], [0, 0, 0], [1, 1, 0, 0, 0, 0]]),
        ("last", [[0, 1, 0, 1], [1], [0, 0, 0], [0, 0, 0, 1, 1, 0]]),
    ],
)
def test_positions_count_what_counts(configs, positions, expected):
    trd = configs["trd_opd"]
    chosen = {"positions": positions, "num_positions": 2}
    only_divergence = replace(trd, objective=replace(trd.objective, **chosen))
    assert masks_of(only_divergence) == {DISTILL: expected, HIDDEN: RESPONSES, POLICY: nothing()}
    only_hidden = replace(trd, objective=replace(trd.objective, hidden=replace(trd.objective.hidden, **chosen)))
    assert masks_of(only_hidden) == {DISTILL: RESPONSES, HIDDEN: expected, POLICY: nothing()}


def test_oprd_takes_the_last_tokens_of_long_responses(configs):
    got = masks_of(configs["oprd"], samples=[[1] * 2003, [1] * 5])
    assert got[HIDDEN] == [[0] * 3 + [1] * 2000, [1] * 5]


def test_task_reward_beside_a_divergence_on_the_same_samples(configs):
    trd = configs["oprd"]
    both = replace(trd, objective=replace(trd.objective, task_reward_coef=0.5, positions="first", num_positions=1))
    assert not both.trains_both
    got = masks_of(both)
    assert got[POLICY] == RESPONSES  # every token that the student said
    assert got[DISTILL] == [[1, 0, 0, 0], [1], [0, 0, 0], [1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("layout", [torch.jagged, None], ids=["as TransferQueue hands it out", "dense"])
def test_samples_of_y_r_and_of_y_o(configs, layout):
    got = masks_of(configs["trd_grpo"], is_policy=[0, 1, 1, 0], layout=layout)
    expected = [RESPONSES[0], [0], [0, 0, 0], RESPONSES[3]]
    assert got[DISTILL] == got[HIDDEN] == expected
    assert got[POLICY] == [[0] * 4, RESPONSES[1], RESPONSES[2], [0] * 6]


def test_masks_of_a_dense_batch(configs):
    data = tu.get_tensordict({"response_mask": torch.tensor([[1, 0], [1, 1]]), "responses": torch.ones(2, 2)})
    add_masks(data, configs["trd_opd"])
    assert [sample.tolist() for sample in data[DISTILL].unbind()] == [[1, 0], [1, 1]]


def test_masks_of_a_fully_masked_batch(configs):
    samples = [[0, 0], [0]]
    assert masks_of(configs["trd_grpo"], samples, is_policy=[0, 1]) == dict.fromkeys(MASKS, samples)
