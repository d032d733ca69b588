import copy

import pytest

from recipe.trd.tiny_world.world_config import TinyWorldConfig, from_mapping


def test_shipped_configuration_fits_the_schema(default_values):
    config = from_mapping(TinyWorldConfig, default_values)
    assert config.teacher.training.num_steps == 900
    assert config.student.dialect_probability == 0.7


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("seed",), "zero", "seed='zero' must be of type int"),
        (("seed",), True, "seed=True must be of type int"),
        (("with_self_student",), 1, "with_self_student=1 must be of type bool"),
        (("teacher", "training", "num_steps"), 1.5, r"teacher.training.num_steps=1.5 must be of type int"),
        (("student", "model"), 3, "student.model=3 must be of type ModelConfig"),
        (("world", "depth"), 3, r"world has keys .*'depth'.* and needs"),
        (("world", "operand_max"), 60, "world.operand_max=60 must be in 1..value_max/2"),
        (("world", "first_max"), 100, r"world.first_max=100 must be in 1..99"),
        (("world", "num_operations_min"), 6, "world.num_operations_min=6"),
        (("evaluation", "num_problems"), 1000, "at most data.num_held_out=512"),
        (("student", "training", "flat_frac"), 1, r"flat_frac=1 must be in \[0, 1\)"),
    ],
)
def test_bad_value_is_named(default_values, path, value, message):
    values = copy.deepcopy(default_values)
    node = values
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        from_mapping(TinyWorldConfig, values)


def test_missing_key_is_refused(default_values):
    values = {key: value for key, value in default_values.items() if key != "threads"}
    with pytest.raises(ValueError, match="needs"):
        from_mapping(TinyWorldConfig, values)
