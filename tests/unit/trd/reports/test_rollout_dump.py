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
            "num_attempts": 2,
            "num_thought_tokens": 4,
            "evidence": {"meta_phrases": []},
            "reward": 1.0,
            "reward_error": None,
            "ground_truth": "46",
            "teacher_prompt_ids": encode("rewrite 47"),
            **changes,
        }

    return make


def test_a_sample_can_be_read(make_record, tokenizer):
    record = make_record("a_0_0")
    (sample,) = rollout_dump.readable_samples([record], tokenizer=tokenizer, step=7)
    assert sample == {
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
        "rewrite_attempts": 2,
        "rewrite_thought_tokens": 4,
        "rewrite_evidence": {"meta_phrases": []},
        "reward": 1.0,
        "reward_error": None,
        "ground_truth": "46",
        "teacher_context": "rewrite 47",
    }


def test_sample_without_a_rewrite_has_null_and_length_zero(make_record, tokenizer):
    record = make_record("a", y_r_ids=None, teacher_prompt_ids=None, y_r_acc=None)
    (sample,) = rollout_dump.readable_samples([record], tokenizer=tokenizer, step=1)
    assert (sample["y_r"], sample["y_r_length"], sample["teacher_context"], sample["y_r_acc"]) == (None, 0, None, None)


def test_samples_are_sorted_by_prompt_and_session(make_record, tokenizer):
    uids = ["b_0_0", "a_1_0", "a_0_0"]
    samples = rollout_dump.readable_samples([make_record(uid) for uid in uids], tokenizer=tokenizer, step=1)
    assert [sample["uid"] for sample in samples] == sorted(uids)


def test_file_has_one_object_a_line_and_keeps_every_character(make_record, tokenizer, tmp_path):
    samples = rollout_dump.readable_samples([make_record("a"), make_record("b")], tokenizer=tokenizer, step=12)
    path = rollout_dump.write(samples, folder=str(tmp_path / "new" / "rollouts"), step=12)
    assert path == tmp_path / "new" / "rollouts" / "12.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == samples
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
