"""Token weights against verl's `agg_loss`, and against themselves over every cut of the batch."""

from itertools import chain

import pytest
import torch
from verl.trainer.ppo.core_algos import agg_loss

from recipe.trd.training.reduction import token_weights

MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
MASKS = {
    "ragged": [[1, 1, 0, 1], [1], [0, 1, 1], [1, 1, 1, 1, 1, 0]],
    "one token": [[1]],
    "an empty row": [[1, 0], [], [1, 1, 1]],
    "a masked row": [[1, 0, 1], [0, 0, 0, 0], [1]],
}


def jagged(rows, dtype=torch.int64):
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return torch.nested.nested_tensor_from_jagged(torch.tensor(list(chain(*rows)), dtype=dtype), offsets=offsets)


def padded(rows):
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.float64)


def losses_of(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(len(row), generator=generator, dtype=torch.float64).tolist() for row in rows]


def weighted(rows, losses, mode, *, num_tokens, num_sequences, num_ranks=1):
    weights = token_weights(
        jagged(rows),
        loss_agg_mode=mode,
        num_tokens=num_tokens,
        num_sequences=num_sequences,
        num_ranks=num_ranks,
        loss_scale_factor=7,
    )
    assert weights.dtype == torch.float32
    return (weights.double() * torch.tensor(list(chain(*losses)), dtype=torch.float64)).sum().item()


@pytest.mark.parametrize("num_ranks", [1, 4])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", MASKS.values(), ids=MASKS)
def test_weighted_sum_is_verls_aggregate(rows, mode, num_ranks):
    losses = losses_of(rows)
    # Another rank holds as many sequences and three tokens more.
    sizes = {"num_tokens": sum(map(sum, rows)) + 3, "num_sequences": 2 * len(rows), "num_ranks": num_ranks}
    expected = agg_loss(
        loss_mat=padded(losses),
        loss_mask=padded(rows),
        loss_agg_mode=mode,
        dp_size=num_ranks,
        batch_num_tokens=sizes["num_tokens"],
        global_batch_size=sizes["num_sequences"],
        loss_scale_factor=7,
    )
    assert weighted(rows, losses, mode, **sizes) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parts", [[[0], [1], [2], [3]], [[2, 0], [3, 1]], [[0, 1, 2], [3]]], ids=str)
def test_micro_batches_and_ranks_add_up(mode, parts):
    rows = MASKS["ragged"]
    losses = losses_of(rows)
    sizes = {"num_tokens": sum(map(sum, rows)), "num_sequences": len(rows)}
    whole = weighted(rows, losses, mode, **sizes)

    def share(part, num_ranks):
        chosen = ([rows[i] for i in part], [losses[i] for i in part])
        return weighted(*chosen, mode, num_ranks=num_ranks, **sizes)

    assert sum(share(part, 1) for part in parts) == pytest.approx(whole, rel=1e-6)
    # Every part on a rank of its own; FSDP averages.
    assert sum(share(part, len(parts)) for part in parts) / len(parts) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_counted_weighs_nothing(mode):
    weights = token_weights(
        jagged([[0, 0], [], [0]]),
        loss_agg_mode=mode,
        num_tokens=0,
        num_sequences=3,
        num_ranks=2,
        loss_scale_factor=7,
    )
    assert weights.tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_any_type_of_mask(dtype):
    arguments = {"num_tokens": 4, "num_sequences": 2, "num_ranks": 1, "loss_scale_factor": None}
    rows = [[1, 0, 1], [1, 1]]
    got = token_weights(jagged(rows, dtype), loss_agg_mode="seq-mean-token-mean", **arguments)
    assert got.tolist() == [0.25, 0, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("mode", ["seq-mean-token-sum-norm", "token-men"])
def test_mode_that_cannot_be_reduced_is_refused(mode):
    with pytest.raises(ValueError, match=f"actor.loss_agg_mode={mode} with loss_scale_factor=None"):
        token_weights(
            jagged([[1]]), loss_agg_mode=mode, num_tokens=1, num_sequences=1, num_ranks=1, loss_scale_factor=None
        )
