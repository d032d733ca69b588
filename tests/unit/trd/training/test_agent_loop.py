"""From a rollout to rows of a batch: what is asked of the teacher, and what the trainer gets."""

import asyncio
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from unit.trd.training.agent_worker import (
    CONFIGS,
    ROW,
    TOP_K,
    Client,
    prompt_of,
    response_positions,
    sample_of,
    samples_of,
)
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput, DictConfigWrap
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.rollout.replica import TokenOutput

from recipe.trd.preflight import thinking
from recipe.trd.training.training_sample import TrainingSample, as_sample


def test_accepted_rewrite_takes_the_place_of_y_o(make_worker, y_o, tokenizer):
    client = Client(tokenizer)
    sample, record = sample_of(make_worker("trd_opd", client=client), y_o)
    assert (sample.prompt_ids, sample.response_ids) == (y_o.prompt_ids, client.ids)
    assert sample.response_mask == [1] * len(client.ids)
    assert [request["kind"] for request in client.requests] == ["rewrite"]
    assert response_positions(sample) == np.arange(len(client.ids) * TOP_K).reshape(-1, TOP_K).tolist()
    assert (record["verdict"], record["trained_on"]) == ("accepted", "y_r")
    assert (record["y_o_ids"], record["y_r_ids"]) == (y_o.response_ids, client.ids)
    assert (record["y_o_acc"], record["y_r_acc"], sample.reward_score) == (0, 1, 1)
    assert record["teacher_prompt_ids"] == client.requests[0]["prompt_ids"]
    assert sample.extra_fields["max_global_steps"] == 3  # the version of the weights stays y_o's


def test_rejected_rewrite_falls_back_to_y_o_under_the_vanilla_context(make_worker, y_o, tokenizer):
    client = Client(tokenizer, finish_reason="length")
    client.ids = client.ids[:-1]
    worker = make_worker("trd_opd", client=client)
    sample, record = sample_of(worker, y_o)
    vanilla = prompt_of(worker, worker.plan.vanilla).ids
    assert sample.response_ids == y_o.response_ids
    assert sample.response_mask == [1] * len(y_o.response_ids)
    assert client.requests[1] == {
        "kind": "score",
        "prompt_ids": [*vanilla, *y_o.response_ids],
        "score_from": len(vanilla),
    }
    assert response_positions(sample)[0] == [100, 101, 102]
    assert (record["verdict"], record["trained_on"]) == ("unfinished", "y_o")
    assert (record["y_r_acc"], record["teacher_prompt_ids"]) == (None, vanilla)
    assert record["score_span"] is not None
    assert worker.graded == ["47"]


@pytest.mark.parametrize("scorer", ["generation", "engine"])
def test_rejected_rewrite_can_be_left_out(make_worker, y_o, tokenizer, scorer):
    client = Client(tokenizer, fails_at=["rewrite"])
    worker = make_worker("trd_opd", "trd.rewrite.fallback=mask", f"trd.teacher.scorer={scorer}", client=client)
    sample, record = sample_of(worker, y_o)
    assert sample.response_mask == [0] * len(y_o.response_ids)
    assert (record["verdict"], record["trained_on"]) == ("failed", "none")
    assert len(client.requests) == 1  # nobody scores what is not trained on
    if scorer == "generation":
        assert not sample.extra_fields["teacher_ids"].any()
    else:
        assert sample.extra_fields["teacher_input_ids"][-len(y_o.response_ids) :].tolist() == y_o.response_ids


def test_sample_that_could_not_be_scored_is_left_out(make_worker, y_o, tokenizer, caplog):
    client = Client(tokenizer, fails_at=["score"])
    sample, record = sample_of(make_worker("opd_topk", client=client), y_o)
    assert sample.response_mask == [0] * len(y_o.response_ids)
    assert not sample.extra_fields["teacher_logprobs"].any()
    assert (record["verdict"], record["trained_on"]) == (None, "none")
    assert record["score_span"] is not None
    assert isinstance(caplog.records[-1].exc_info[1], ConnectionError)


def test_y_o_scored_by_a_server(make_worker, y_o, tokenizer):
    client = Client(tokenizer)
    worker = make_worker("opd_topk", client=client)
    sample, record = sample_of(worker, y_o)
    vanilla = prompt_of(worker, worker.plan.vanilla).ids
    assert [request["prompt_ids"] for request in client.requests] == [[*vanilla, *y_o.response_ids]]
    assert response_positions(sample)[-1] == [100 + TOP_K * (len(y_o.response_ids) - 1) + i for i in range(TOP_K)]
    assert (record["verdict"], record["trained_on"], record["y_o_acc"]) == (None, "y_o", 0)
    assert worker.graded == ["47"]


@pytest.mark.parametrize("context", ["vanilla", "refine"])
def test_y_o_for_a_teacher_in_the_trainer(make_worker, y_o, context):
    worker = make_worker("opd_forward_kl", f"trd.teacher.context={context}")
    sample, record = sample_of(worker, y_o)
    expected = prompt_of(worker, worker.plan.vanilla)
    if context == "refine":
        expected = prompt_of(worker, worker.plan.scored, y_o.response_ids)
    assert sample.extra_fields["teacher_input_ids"].tolist() == [*expected.ids, *y_o.response_ids]
    assert sample.extra_fields["teacher_input_ids"].dtype == torch.int64
    assert record["teacher_prompt_ids"] == expected.ids
    assert (record["trained_on"], record["score_span"]) == ("y_o", None)
    assert "teacher_ids" not in sample.extra_fields


@pytest.mark.parametrize("context", ["vanilla", "refine"])
def test_y_r_for_a_teacher_in_the_trainer(make_worker, y_o, tokenizer, context):
    client = Client(tokenizer)
    worker = make_worker("trd_opd", "trd.teacher.scorer=engine", f"trd.teacher.context={context}", client=client)
    sample, record = sample_of(worker, y_o)
    expected = client.requests[0]["prompt_ids"]  # what it wrote y_r under
    if context == "vanilla":
        expected = prompt_of(worker, worker.plan.vanilla).ids
    assert sample.extra_fields["teacher_input_ids"].tolist() == [*expected, *client.ids]
    assert (record["trained_on"], record["teacher_prompt_ids"]) == ("y_r", expected)
    assert len(client.requests) == 1


def test_hard_labels_need_no_distribution(make_worker, y_o, tokenizer):
    client = Client(tokenizer)
    sample, record = sample_of(make_worker("sft_y_r", client=client), y_o)
    assert sample.response_ids == client.ids
    assert not {"teacher_ids", "teacher_input_ids"} & set(sample.extra_fields)
    assert record["trained_on"] == "y_r"
    rejected = make_worker("sft_y_r", client=Client(tokenizer, fails_at=["rewrite"]))
    sample, record = sample_of(rejected, y_o)
    assert sample.response_mask == [0] * len(y_o.response_ids)  # y_o never becomes a label
    assert record["trained_on"] == "none"


def test_the_teacher_in_the_trainer_reads_its_own_end_of_turn(make_worker, y_o, tokenizer):
    theirs, ours = tokenizer.eos_token_id, tokenizer.pad_token_id
    y_o.response_ids[-1] = ours
    sample, record = sample_of(make_worker("eopd", student_eos=ours), y_o)
    assert sample.response_ids[-1] == record["y_o_ids"][-1] == ours
    assert sample.extra_fields["teacher_input_ids"][-1] == theirs


BOTH = ["trd.teacher.scorer=generation", "trd.teacher.scorer=engine"]


@pytest.mark.parametrize("scorer", BOTH)
@pytest.mark.parametrize("fails_at", [[], ["rewrite"], ["rewrite", "score"]], ids=["accepted", "fallback", "masked"])
def test_task_reward_gets_a_row_of_its_own(make_worker, y_o, tokenizer, scorer, fails_at):
    client = Client(tokenizer, fails_at=fails_at)
    distill, policy = samples_of(make_worker("trd_grpo", scorer, client=client), y_o)
    # The last row carries the reward, of which verl makes the advantage of its group.
    assert (distill.reward_score, policy.reward_score) == (None, 0)
    assert (policy.response_ids, policy.response_mask) == (y_o.response_ids, [1] * len(y_o.response_ids))
    assert distill.response_ids == (y_o.response_ids if fails_at else client.ids)
    assert [row.extra_fields["is_policy"].tolist() for row in (distill, policy)] == [[0], [1]]
    assert "trd" in distill.extra_fields
    assert "trd" not in policy.extra_fields
    if scorer == BOTH[0]:
        assert not policy.extra_fields["teacher_ids"].any()
        assert distill.response_mask[0] == ("score" not in fails_at)
    else:
        assert policy.extra_fields["teacher_input_ids"].tolist() == [*y_o.prompt_ids, *y_o.response_ids]


@pytest.mark.parametrize("scorer", BOTH)
def test_both_rows_enter_one_table(make_worker, y_o, tokenizer, scorer, monkeypatch):
    written = []

    async def keep(self, output, validate, **kwargs):
        for row in output[:-1]:  # as verl does with the rows before the last
            row.reward_score = output[-1].reward_score
        written.extend(output)

    monkeypatch.setattr(AgentLoopWorkerTQ.__ray_metadata__.modified_class, "_agent_loop_postprocess", keep)
    worker = make_worker("trd_grpo", scorer, client=Client(tokenizer))
    asyncio.run(worker._agent_loop_postprocess(y_o, False, **ROW))
    table = list_of_dict_to_tensordict([row.as_dict() for row in written])
    assert table["is_policy"].tolist() == [[0], [1]]
    assert [float(scores.sum()) for scores in table["rm_scores"].unbind()] == [0, 0]
    for name in ("responses", "response_mask", "rm_scores"):
        assert table[name].offsets().tolist() == table["responses"].offsets().tolist()
    if scorer == BOTH[0]:
        assert table["teacher_ids"].offsets().diff().tolist() == [
            len(row.prompt_ids) + len(row.response_ids) for row in written
        ]


@pytest.mark.parametrize("wrap", [lambda output: output, lambda output: [output]], ids=["one", "a list of one"])
def test_validation_is_verls_own(make_worker, y_o, monkeypatch, wrap):
    seen = []

    async def keep(self, output, validate, **kwargs):
        seen.append((output, validate, kwargs))

    monkeypatch.setattr(AgentLoopWorkerTQ.__ray_metadata__.modified_class, "_agent_loop_postprocess", keep)
    worker, output = make_worker("opd_forward_kl"), wrap(y_o)
    asyncio.run(worker._agent_loop_postprocess(output, True, **ROW))
    assert seen[0][0] is output
    assert seen[0][1:] == (True, ROW)
    asyncio.run(worker._agent_loop_postprocess(output, False, **ROW))
    (sample,), validate, kwargs = seen[1]
    assert "teacher_input_ids" in sample.extra_fields
    assert (validate, kwargs) == (False, ROW)


def test_columns_of_a_sample():
    fields = {"teacher_input_ids": torch.tensor([1, 2, 3]), "is_policy": torch.tensor([1]), "trd": {"y_o_ids": [3]}}
    common = {"prompt_ids": [1, 2], "response_ids": [3], "response_mask": [1], "metrics": AgentLoopMetrics()}
    columns = TrainingSample(**common, reward_score=0.5, extra_fields=fields).as_dict()
    assert columns["teacher_input_ids"].tolist() == [1, 2, 3]
    assert columns["is_policy"].tolist() == [1]
    assert columns["extra_fields"] == {"trd": {"y_o_ids": [3]}}
    assert columns["rm_scores"].tolist() == [0.5]
    assert fields.keys() == {"teacher_input_ids", "is_policy", "trd"}  # the sample itself is left as it was
    plain = TrainingSample(**common).as_dict()
    assert not {"teacher_input_ids", "is_policy", "rm_scores"} & set(plain)


def test_a_sample_keeps_what_was_set_and_no_default(y_o):
    sample = as_sample(y_o)
    assert sample.model_fields_set == y_o.model_fields_set
    assert sample.model_dump() == y_o.model_dump()
    bare = AgentLoopOutput(prompt_ids=[1], response_ids=[2], response_mask=[1], metrics=AgentLoopMetrics())
    bare.extra_fields["max_global_steps"] = 7  # which pydantic does not count as set
    assert as_sample(bare).extra_fields == {"max_global_steps": 7}
    assert "reward_score" not in as_sample(bare).model_fields_set


SECRET = "zebra QUARTZ"
SECRET_ROW = {**ROW, "extra_info": {"reference_solution": f"{SECRET}: 12+34=46"}, "global_steps": 1}
NOT_READ_BY_THE_STUDENT = {"teacher_input_ids", "extra_info"}
"""Columns that may hold y*: what the teacher reads, and the row of the data set that travels along."""

SHOWN = [
    ("opsd",),
    ("opsd", "trd.teacher.scorer=prefill", "trd.objective.support=teacher_topk", "trd.objective.entry_clip=null"),
    ("opd_forward_kl", "trd.teacher.context=refine", "trd.rewrite.with_reference=true"),
    ("opd_topk", "trd.teacher.context=privileged"),
    ("trd_opsd",),
    ("trd_opsd", "trd.teacher.context=privileged"),
    ("trd_opsd", "trd.teacher.context=vanilla"),
    ("trd_opsd", "trd.rewrite.fallback=mask"),
    ("sft_y_r", "trd.rewrite.with_reference=true"),
    ("trd_grpo", "trd.rewrite.with_reference=true"),
    ("trd_grpo", "trd.rewrite.with_reference=true", "trd.teacher.scorer=engine"),
]


@pytest.fixture
def rows_of(make_worker, monkeypatch):
    """Rows as verl writes them to TransferQueue, each a dictionary of columns."""

    def make(*changes, client, y_o, validate=False):
        worker = make_worker(*changes, "data.max_refine_length=2000", client=client)
        worker.processor, grade = None, worker._compute_score
        written = []

        async def grade_once(outputs, kwargs):
            if outputs[-1].reward_score is None:
                await grade(outputs, kwargs)

        async def keep(fields, **_):
            names = list(fields.keys())
            written.extend({name: fields[name][i] for name in names} for i in range(len(fields)))

        worker._compute_score = grade_once
        monkeypatch.setattr(agent_loop_tq.tq, "async_kv_batch_put", keep)
        asyncio.run(worker._agent_loop_postprocess(y_o, validate, **SECRET_ROW))
        return written

    return make


def holds_secret(value, tokenizer):
    """Whether a word of y* can be read there: in text, in token ids, or in either inside something else."""
    if isinstance(value, dict):
        return any(holds_secret(item, tokenizer) for item in value.values())
    if isinstance(value, torch.Tensor):
        value = value.flatten().tolist()
    if isinstance(value, list | tuple) and value and all(isinstance(item, int) for item in value):
        value = tokenizer.decode([max(item, 0) for item in value])
    if isinstance(value, list | tuple):
        return any(holds_secret(item, tokenizer) for item in value)
    return any(word in str(value) for word in SECRET.split())


@pytest.mark.parametrize("changes", SHOWN, ids=" ".join)
@pytest.mark.parametrize(
    "fate",
    [{}, {"finish_reason": "length"}, {"fails_at": ["rewrite"]}, {"fails_at": ["rewrite", "score"]}],
    ids=["accepted", "unfinished", "failed", "failed twice"],
)
def test_no_row_shows_the_student_a_reference(rows_of, y_o, tokenizer, changes, fate):
    client = Client(tokenizer, **fate)
    rows = rows_of(*changes, client=client, y_o=y_o)
    assert len(rows) == 1 + (changes[0] == "trd_grpo")
    for row in rows:
        assert {"prompts", "responses", "input_ids", "position_ids", "response_mask", "raw_prompt"} <= set(row)
        record = dict(row["extra_fields"].get("trd") or {})
        record.pop("teacher_prompt_ids", None)
        seen = {name: value for name, value in row.items() if name not in {"extra_fields", *NOT_READ_BY_THE_STUDENT}}
        seen |= {**row["extra_fields"], "trd": record}
        assert [name for name, value in seen.items() if holds_secret(value, tokenizer)] == []
        assert row["prompts"].tolist() == y_o.prompt_ids
        assert row["input_ids"].tolist() == [*row["prompts"].tolist(), *row["responses"].tolist()]
    # The search finds what it looks for: the teacher did see y*.
    shown = [request["prompt_ids"] for request in client.requests]
    shown += [row["teacher_input_ids"] for row in rows if "teacher_input_ids" in row]
    assert any(holds_secret(ids, tokenizer) for ids in shown)


def test_the_row_of_the_task_reward_has_no_reference_at_all(rows_of, y_o, tokenizer):
    changes = ("trd_grpo", "trd.rewrite.with_reference=true", "trd.teacher.scorer=engine")
    _, policy = rows_of(*changes, client=Client(tokenizer), y_o=y_o)
    assert not holds_secret(policy["teacher_input_ids"], tokenizer)


@pytest.mark.parametrize("changes", [("opsd",), ("trd_opsd",)], ids=" ".join)
def test_no_validation_row_shows_the_student_a_reference(rows_of, y_o, tokenizer, changes):
    client = Client(tokenizer)
    (row,) = rows_of(*changes, client=client, y_o=y_o, validate=True)
    assert [name for name, value in row.items() if holds_secret(value, tokenizer)] == ["extra_info"]
    assert "teacher_input_ids" not in row
    assert client.requests == []


def test_a_teacher_that_is_the_student_has_the_chat_template_of_the_run(make_worker, tokenizer):
    worker = make_worker("opsd")
    worker.tokenizer, worker.llm_client = copy.deepcopy(tokenizer), None
    worker.setup_method()
    assert worker.teacher.tokenizer is worker.tokenizer


EMPTY = "<think></think>"
HYBRID = "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}" + EMPTY + "{% endif %}"


@pytest.mark.parametrize("switch", ["null", "true", "false"])
def test_the_students_server_is_asked_with_the_problem_alone(tokenizer, switch):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template += HYBRID
    asked = []

    async def generate(prompt_ids, **_):
        asked.append(prompt_ids)
        return TokenOutput(token_ids=[tokenizer.eos_token_id], stop_reason="completed")

    with initialize_config_dir(str(CONFIGS), version_base=None):
        overrides = ["method=opsd", "model=tiny", "data=tiny_world", "cluster=cpu"]
        config = compose("trd_trainer", overrides=[*overrides, f"trd.student_thinking={switch}"])
    thinking.set_for_student(config, omega_conf_to_dataclass(config.trd), tokenizer)
    loop = SingleTurnAgentLoop(
        trainer_config=DictConfigWrap(config),
        server_manager=SimpleNamespace(generate=generate),
        tokenizer=tokenizer,
        processor=None,
        dataset_cls=RLHFDataset,
        data_config=DictConfigWrap(config.data),
    )
    output = loop.loop.run_until_complete(loop.run({}, **SECRET_ROW))
    expected = "<|im_start|>user\n12+34=?<|im_end|>\n<|im_start|>assistant\n" + (EMPTY if switch == "false" else "")
    assert asked == [output.prompt_ids]
    assert tokenizer.decode(output.prompt_ids) == expected
