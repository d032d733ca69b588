"""Which layer of the teacher belongs to which of the student."""

import pytest

from recipe.trd.oprd.layer_map import layer_map


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
