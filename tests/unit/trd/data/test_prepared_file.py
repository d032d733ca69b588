"""What may be written, and that all of it is there."""

import pytest

from recipe.trd.data import prepared_file

GOOD = {
    "prompt": [{"role": "user", "content": "p"}],
    "data_source": "d",
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "1"},
    "reference_solution": None,
    "extra_info": {"split": "train", "index": 0, "id": "", "problem": "p"},
}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("prompt", [], "prompt is no list"),
        ("prompt", [{"role": "assistant", "content": "p"}], "does not end with the user's"),
        ("prompt", [{"role": "user", "content": None}], r"prompt\[0\].content is None"),
        ("data_source", "", "data_source is ''"),
        ("reward_model", {"style": "rule", "ground_truth": 3}, "reward_model.ground_truth is 3"),
        ("reference_solution", " ", "reference_solution is ' '"),
        ("extra_info", {"split": "train", "problem": "p"}, "extra_info.index"),
        ("another", 1, "columns"),
    ],
)
def test_rows_that_do_not_fit_the_schema_are_not_written(tmp_path, column, value, message):
    path = tmp_path / "train.parquet"
    with pytest.raises(ValueError, match=message):
        prepared_file.write(path, [GOOD, GOOD | {column: value}])
    assert list(tmp_path.iterdir()) == []


def test_rows_are_written_in_groups_and_all_there(tmp_path):
    path = tmp_path / "train.parquet"
    numbered = ({**GOOD, "extra_info": {**GOOD["extra_info"], "index": index}} for index in range(2500))
    assert prepared_file.write(path, numbered) == 2500
    assert [id_ for id_, _ in prepared_file.problems(path)] == [str(index) for index in range(2500)]
