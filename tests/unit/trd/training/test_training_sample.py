"""A response on which the reward function failed, and what counts of it."""

import asyncio

import pytest
from unit.trd.training.agent_worker import Client, samples_of
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

from recipe.trd.training import training_sample


@pytest.fixture
def output():
    return AgentLoopOutput(prompt_ids=[1], response_ids=[2], response_mask=[1], metrics=AgentLoopMetrics())


def test_an_ungraded_response_has_a_score_for_verl_and_no_accuracy(output):
    training_sample.mark_ungraded(output, "it raised", like={"acc": 1.0, "pred": "46", "fraction": 0.5})
    assert output.reward_score == 0
    assert output.extra_fields["reward_extra_info"] == {"acc": 0.0, "pred": "", "fraction": 0.0}
    assert training_sample.accuracy(output) is None
    assert training_sample.reward_error(output) == "it raised"


@pytest.fixture
def failing(make_worker, monkeypatch, tokenizer):
    """A worker whose reward function does what it is told to do on a text."""

    def make(behaviour, *changes):
        async def grade(self, outputs, kwargs):
            text = tokenizer.decode(outputs[-1].response_ids, skip_special_tokens=True)
            if outputs[-1].reward_score is not None:
                return
            if behaviour.get(text) == "raise":
                raise ZeroDivisionError("in a mood")
            if behaviour.get(text) == "hang":
                await asyncio.sleep(3600)
            outputs[-1].reward_score = 1.0
            outputs[-1].extra_fields["reward_extra_info"] = {"acc": 1.0, "pred": text}

        monkeypatch.setattr(AgentLoopWorkerTQ.__ray_metadata__.modified_class, "_compute_score", grade)
        worker = make_worker(*changes, "trd.faults.reward_timeout_s=0.05", client=Client(tokenizer))
        del worker._compute_score
        return worker

    return make


@pytest.mark.parametrize(
    ("fault", "says"),
    [("raise", "ZeroDivisionError: in a mood"), ("hang", "no result within trd.faults.reward_timeout_s")],
)
def test_a_reward_function_that_fails_on_y_o_costs_its_score_alone(failing, y_o, fault, says):
    distill, policy = samples_of(failing({"47": fault}, "trd_grpo"), y_o)
    record = distill.extra_fields["trd"]
    assert record["reward_error"].startswith(says)
    assert (record["y_o_acc"], record["y_r_acc"]) == (None, 1)
    assert sum(distill.response_mask) == len(distill.response_ids)  # the divergence needs no reward
    assert sum(policy.response_mask) == 0


def test_a_reward_function_that_fails_on_y_r(failing, y_o):
    (sample,) = samples_of(failing({"46": "raise"}, "trd_opd"), y_o)
    record = sample.extra_fields["trd"]
    assert (record["verdict"], record["y_o_acc"], record["y_r_acc"]) == ("accepted", 1, None)
    assert record["reward_error"] == "ZeroDivisionError: in a mood"


def test_blanks_are_as_the_reward_function_speaks(failing, y_o):
    worker = failing({"47": "raise"}, "trd_opd")
    samples_of(worker, y_o)
    fresh = y_o.model_copy(update={"reward_score": None, "extra_fields": {}})
    sample = training_sample.as_sample(fresh)
    asyncio.run(worker._compute_score([sample], {}))
    assert sample.extra_fields["reward_extra_info"] == {"acc": 0.0, "pred": ""}
