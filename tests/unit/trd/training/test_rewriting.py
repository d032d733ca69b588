"""Which rewrites become samples: what is asked again, rejected, stripped, and what is written down about it."""

import copy

import pytest
from unit.trd.training.agent_worker import TOP_K, Writer, prompt_of, response_positions, sample_of


def test_a_right_rollout_is_not_rewritten_where_only_wrong_ones_are(make_worker, y_o, tokenizer):
    only = "trd.rewrite.when=incorrect_only"
    wrong = Writer(tokenizer, "46")
    sample, record = sample_of(make_worker("trd_opd", only, client=wrong), y_o)
    assert (record["verdict"], record["trained_on"], wrong.kinds()) == ("accepted", "y_r", ["rewrite"])
    y_o.response_ids = [*tokenizer.encode("46", add_special_tokens=False), tokenizer.eos_token_id]
    y_o.response_mask = [1] * len(y_o.response_ids)
    right = Writer(tokenizer)
    worker = make_worker("trd_opd", only, client=right)
    sample, record = sample_of(worker, y_o)
    assert (record["verdict"], record["trained_on"], record["rewrite_span"]) == ("not_needed", "y_o", None)
    assert (sample.response_ids, right.kinds()) == (y_o.response_ids, ["score"])
    assert record["teacher_prompt_ids"] == prompt_of(worker, worker.plan.vanilla).ids
    masked = make_worker("trd_opd", only, "trd.rewrite.fallback=mask", client=Writer(tokenizer))
    sample, record = sample_of(masked, y_o)
    assert (record["trained_on"], sum(sample.response_mask)) == ("none", 0)


def test_a_rejected_rewrite_is_asked_for_again(make_worker, y_o, tokenizer):
    client = Writer(tokenizer, "48", "your attempt: 46", "46")
    worker = make_worker(
        *("trd_opd", "trd.rewrite.retries=3", "trd.rewrite.reject.wrong=true", "trd.rewrite.reject.meta=true"),
        client=client,
    )
    sample, record = sample_of(worker, y_o)
    assert (record["verdict"], record["num_attempts"], record["y_r_acc"]) == ("accepted", 3, 1)
    assert tokenizer.decode(sample.response_ids, skip_special_tokens=True) == "46"
    assert sorted(worker.graded) == ["46", "47", "48"]  # talk is found before anything is graded


def test_the_last_attempts_verdict_stands(make_worker, y_o, tokenizer):
    client = Writer(tokenizer, "48", "49")
    worker = make_worker("trd_opd", "trd.rewrite.retries=1", "trd.rewrite.reject.wrong=true", client=client)
    sample, record = sample_of(worker, y_o)
    assert (record["verdict"], record["num_attempts"], record["trained_on"]) == ("wrong", 2, "y_o")
    assert tokenizer.decode(record["y_r_ids"], skip_special_tokens=True) == "49"
    assert (record["y_r_acc"], record["evidence"]["acc"]) == (None, 0)
    assert sample.response_ids == y_o.response_ids
    assert client.kinds() == ["rewrite", "rewrite", "score"]


@pytest.mark.parametrize(("log_prob", "verdict"), [(-0.5, "accepted"), (-3.0, "unlikely"), (OSError("gone"), "failed")])
def test_what_the_student_would_hardly_write(make_worker, y_o, tokenizer, log_prob, verdict):
    client = Writer(tokenizer, "46", log_prob=log_prob)
    worker = make_worker("trd_opd", "trd.rewrite.reject.student_log_prob_below=-2", client=client)
    worker.teacher.student_client = client
    _, record = sample_of(worker, y_o)
    assert record["verdict"] == verdict
    asked = client.requests[1]
    y_r_ids = [*tokenizer.encode("46", add_special_tokens=False), tokenizer.eos_token_id]
    assert asked["prompt_ids"] == [*y_o.prompt_ids, *y_r_ids]
    assert asked["score_from"] == len(y_o.prompt_ids)
    if verdict == "failed":
        assert record["error"] == "OSError: gone"
    else:
        assert record["evidence"]["student_log_prob"] == pytest.approx(log_prob)


@pytest.mark.parametrize(("thoughts", "verdict"), [("strip", "accepted"), ("reject", "thoughts"), ("keep", "accepted")])
def test_thoughts_of_a_rewrite(make_worker, y_o, tokenizer, thoughts, verdict):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["<think>", "</think>"])
    client = Writer(tokenizer, "<think>hm</think>46")
    worker = make_worker("trd_opd", f"trd.rewrite.thoughts={thoughts}", client=client)
    worker.teacher.tokenizer = worker.tokenizer = tokenizer
    sample, record = sample_of(worker, y_o)
    assert record["verdict"] == verdict
    if verdict == "accepted":
        text = tokenizer.decode(sample.response_ids, skip_special_tokens=True)
        assert text == ("46" if thoughts == "strip" else "<think>hm</think>46")
        # The rows that the server sent with the thoughts went with them.
        first = len(client.ids) - len(sample.response_ids)
        assert record["num_thought_tokens"] == first
        assert response_positions(sample)[0] == [first * TOP_K + i for i in range(TOP_K)]


def test_a_reward_that_names_no_answer_says_nothing_about_it(make_worker, y_o, tokenizer):
    worker = make_worker("trd_opd", "trd.rewrite.reject.no_answer=true", client=Writer(tokenizer, "46"))
    grade, answer = worker._compute_score, {}

    async def with_answer(outputs, kwargs):
        await grade(outputs, kwargs)
        outputs[-1].extra_fields["reward_extra_info"].update(answer)

    worker._compute_score = with_answer
    assert sample_of(worker, y_o)[1]["verdict"] == "accepted"
    for pred, verdict in (("", "no_answer"), ("46", "accepted")):
        answer["pred"] = pred
        worker.teacher.client.texts = ["46"]
        y_o.reward_score = None
        assert sample_of(worker, y_o)[1]["verdict"] == verdict
