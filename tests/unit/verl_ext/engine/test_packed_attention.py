"""Attention of packed sequences against the same sequences one by one, with transformers' own attention."""

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from verl_ext.engine import packed_attention

LENGTHS = [5, 1, 9, 3]


def make_model(attention, **changes):
    torch.manual_seed(0)
    settings = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    config = Qwen3Config(**settings, num_attention_heads=4, num_key_value_heads=2, **changes)
    return Qwen3ForCausalLM._from_config(config, attn_implementation=attention, dtype=torch.float64)


@pytest.mark.parametrize("changes", [{}, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}])
def test_packed_sequences_do_not_see_each_other(changes):
    packed, single = make_model(packed_attention.NAME, **changes), make_model("sdpa", **changes)
    sequences = [torch.randint(50, (1, length)) for length in LENGTHS]
    ids, positions = torch.cat(sequences, -1), torch.cat([torch.arange(length) for length in LENGTHS])[None]
    logits = packed(input_ids=ids, position_ids=positions, use_cache=False).logits
    expected = torch.cat([single(input_ids=one, use_cache=False).logits for one in sequences], 1)
    torch.testing.assert_close(logits, expected)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for (name, one), (_, other) in zip(packed.named_parameters(), single.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rows": 2}, "several rows"),
        ({"attention_mask": torch.ones(1)}, "an attention mask"),
        ({"position_ids": None}, "no position ids"),
        ({"dropout": 0.1}, "dropout"),
        ({"softcap": 30.0}, "a cap of the scores"),
        ({"s_aux": torch.ones(1)}, "attention sinks"),
    ],
)
def test_what_it_cannot_do_is_refused(changes, text):
    tensors = [torch.zeros(changes.pop("rows", 1), 2, 4, 8) for _ in range(3)]
    arguments = {"attention_mask": None, "position_ids": torch.arange(4)[None], **changes}
    with pytest.raises(ValueError, match=text):
        packed_attention.packed_attention(torch.nn.Identity(), *tensors, **arguments)


def test_padding_at_the_end_of_a_row_is_a_sequence_of_its_own():
    """verl pads packed rows with position ids that start again."""
    bounds, ends = packed_attention._bounds_of(torch.tensor([[0, 1, 2, 0, 1, 0, 0]]))
    assert ends == [0, 3, 5, 6, 7]
    assert bounds.tolist() == ends
    assert bounds.dtype == torch.int32
