"""Hidden states of two models at the same response tokens, against forward passes one by one."""

import pytest
import torch

from recipe.trd.oprd import paired_states


def test_states_are_those_at_the_response_tokens(pair, tmp_path):
    model = paired_states.load_model(str(tmp_path / "student"), dtype=torch.float32, device=torch.device("cpu"))
    ids = [[3, 4, 5, 6, 7, 8], [9, 10, 11], [1, 2, 3, 4]]
    num_positions = [2, 3, 0]
    found = paired_states.response_states(model, ids, num_positions)
    for layer in range(2):
        alone = [
            model(torch.tensor([sequence]), output_hidden_states=True).hidden_states[1 + layer][0, len(sequence) - n :]
            for sequence, n in zip(ids, num_positions, strict=True)
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
        num_positions=[2, 1, 2, 2],
    )
    seen = {}
    for states in paired_states.paired_states(student, teacher, sequences, teacher_layers=(0, 2), batch_tokens=10):
        start = 0
        for index in states.sequences:
            positions = slice(start, start := start + sequences.num_positions[index])
            seen[index] = (states.student[1][positions], states.teacher[1][positions])
        assert start == len(states.student[0]) == len(states.teacher[0])
    for index, response in enumerate(responses):
        n = sequences.num_positions[index]
        for got, model, prompt in zip(seen[index], (student, teacher), ([1], [2, 3, 4]), strict=True):
            expected = model.base_model(torch.tensor([[*prompt, *response]])).last_hidden_state[0, -n:]
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([3, 5, 4, 2], [[1, 2], [0, 3]]), ([20, 3], [[0], [1]]), ([5, 5], [[0, 1]]), ([], [])],
)
def test_batches_hold_so_many_tokens(lengths, expected):
    assert paired_states.batches(lengths, batch_tokens=10) == expected
