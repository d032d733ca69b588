import pytest
import torch

from recipe.trd.tiny_world.prefix_failure import first_wrong_token, measure, response_log_probs, table
from recipe.trd.tiny_world.problems import ChainProblem
from recipe.trd.tiny_world.supervised_training import build_model
from recipe.trd.tiny_world.tokenizer import prompt_ids, response_ids
from recipe.trd.tiny_world.world_config import ModelConfig

PROBLEM = ChainProblem.parse("9-6+1")


@pytest.fixture
def model(tokenizer):
    config = ModelConfig(num_layers=1, hidden_size=16, num_heads=2, head_dim=8, intermediate_size=16)
    return build_model(config, tokenizer=tokenizer, max_position_embeddings=128, seed=0).eval()


@pytest.mark.parametrize(
    ("solution", "index"),
    [
        ("9-6=3\n3+1=4\n\\boxed{4}", None),
        ("9-6=3, 3+1=4, \\boxed{4}", None),
        ("9-6=2\n2+1=3\n\\boxed{3}", 4),
        ("9-6=3\n3+1=4", 11),
        ("9-6=3\n3+1=4\n\\boxed{4}\n", 15),
    ],
)
def test_first_wrong_token_is_found_in_either_dialect(tokenizer, solution, index):
    (ids,) = response_ids(tokenizer, [solution])
    assert first_wrong_token(PROBLEM, ids, tokenizer) == (len(ids) if index is None else index)


def test_log_probs_are_those_of_the_whole_model(model):
    log_probs = response_log_probs(model, [5, 6, 7], [8, 9])
    expected = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 2:4].log_softmax(-1)
    torch.testing.assert_close(log_probs, expected)


def test_signal_is_the_divergence_of_the_two_contexts_split_at_the_first_wrong_token(model, tokenizer):
    (solution,) = response_ids(tokenizer, ["9-6=2\n2+1=3\n\\boxed{3}"])
    signal = measure(model, tokenizer, [PROBLEM], [solution], clip=0.0)
    assert signal.place.tolist() == [0] * 4 + [1] + [2] * (len(solution) - 5)
    plain, context = prompt_ids(
        tokenizer, ["Compute 9-6+1", "Compute 9-6+1\nReference solution:\n" + PROBLEM.solution(0)]
    )
    student, teacher = (response_log_probs(model, prompt, solution).double() for prompt in (plain, context))
    expected = torch.nn.functional.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(signal.divergence.double(), expected, rtol=1e-4, atol=1e-7)
    # Nothing is left of what a clip at zero cuts off.
    torch.testing.assert_close(signal.clipped, signal.positive)
    assert table(signal).row_count == 3
