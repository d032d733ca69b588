import json

import pytest

from recipe.trd.reports import rollout_dump


@pytest.fixture
def make_record(tokenizer):
    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    def make(uid, **changes):
        return {
            "uid": uid,
            "prompt_ids": encode("<|im_start|>user\n12+34=?<|im_end|>\n"),
            "y_o_ids": [*encode("47"), tokenizer.eos_token_id],
            "y_r_ids": [*encode("46 €"), tokenizer.eos_token_id],
            "trained_on": "y_r",
            "verdict": "accepted",
            "y_o_acc": 0.0,
            "y_r_acc": 1.0,
            "num_cut": 3,
            "reward": 1.0,
            "ground_truth": "46",
            "teacher_prompt_ids": encode("rewrite 47"),
            **changes,
        }

    return make


def test_a_row_can_be_read(make_record, tokenizer):
    record = make_record("a_0_0")
    (row,) = rollout_dump.rows([record], tokenizer=tokenizer, step=7)
    assert row == {
        "uid": "a_0_0",
        "step": 7,
        "x": "user\n12+34=?\n",
        "y_o": "47",
        "y_r": "46 €",
        "trained_on": "y_r",
        "verdict": "accepted",
        "y_o_acc": 0.0,
        "y_r_acc": 1.0,
        "y_o_length": len(record["y_o_ids"]),
        "y_r_length": len(record["y_r_ids"]),
        "y_o_cut_tokens": 3,
        "reward": 1.0,
        "ground_truth": "46",
        "teacher_context": "rewrite 47",
    }


def test_sample_without_a_rewrite_has_null_and_length_zero(make_record, tokenizer):
    record = make_record("a", y_r_ids=None, teacher_prompt_ids=None, y_r_acc=None)
    (row,) = rollout_dump.rows([record], tokenizer=tokenizer, step=1)
    assert (row["y_r"], row["y_r_length"], row["teacher_context"], row["y_r_acc"]) == (None, 0, None, None)


def test_rows_are_sorted_by_prompt_and_session(make_record, tokenizer):
    uids = ["b_0_0", "a_1_0", "a_0_0"]
    rows = rollout_dump.rows([make_record(uid) for uid in uids], tokenizer=tokenizer, step=1)
    assert [row["uid"] for row in rows] == sorted(uids)


def test_file_has_one_object_a_line_and_keeps_every_character(make_record, tokenizer, tmp_path):
    rows = rollout_dump.rows([make_record("a"), make_record("b")], tokenizer=tokenizer, step=12)
    path = rollout_dump.write(rows, folder=str(tmp_path / "new" / "rollouts"), step=12)
    assert path == tmp_path / "new" / "rollouts" / "12.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert "€" in lines[0]


def test_writing_again_replaces_and_leaves_nothing_else(tmp_path):
    rollout_dump.write([{"a": 1}, {"a": 2}], folder=str(tmp_path), step=3)
    rollout_dump.write([{"a": 3}], folder=str(tmp_path), step=3)
    assert [path.name for path in tmp_path.iterdir()] == ["3.jsonl"]
    assert (tmp_path / "3.jsonl").read_text() == '{"a": 3}\n'


def test_file_of_a_failed_write_is_the_old_one(tmp_path):
    rollout_dump.write([{"a": 1}], folder=str(tmp_path), step=3)
    with pytest.raises(TypeError):
        rollout_dump.write([{"a": object()}], folder=str(tmp_path), step=3)
    assert (tmp_path / "3.jsonl").read_text() == '{"a": 1}\n'


def test_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        rollout_dump.write([{"a": 1}], folder=str(tmp_path / "file" / "rollouts"), step=1)
