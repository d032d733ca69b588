"""The student's own server as its teacher's: when it can be, what it then needs, and what it is asked."""

import asyncio
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.rollout.replica import TokenOutput

from recipe.trd.config.teacher_plan import Holder
from recipe.trd.preflight import student_server, verl_keys
from recipe.trd.rewrite.teacher import TeacherClient
from verl_ext.runtime.resources import required

CONFIGS = Path(__file__).parents[4] / "configs"
LORA = "actor_rollout_ref.model.lora_rank=8"
MERGED = "actor_rollout_ref.model.lora.merge=True"
TOP_K = ("trd.objective.support=teacher_topk", "trd.objective.top_k=5")
PROMPT = [{"role": "user", "content": "12+34=?"}]
EMA = "trd.teacher.weights=ema"


@cache
def compose_run(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("trd_trainer", overrides=["method=trd_opsd", "model=tiny", *overrides])


def trd_of(*overrides):
    return omega_conf_to_dataclass(compose_run(*overrides).trd)


@pytest.mark.parametrize(
    ("overrides", "has_server", "asks_student", "asks_average"),
    [
        ((), True, False, False),
        ((LORA,), False, True, False),
        ((LORA, MERGED), True, False, False),
        (("trd.rewrite.weights=live",), False, True, False),
        ((LORA, "trd.rewrite.weights=live"), False, True, False),
        ((LORA, EMA), False, True, True),
        ((LORA, EMA, "trd.rewrite.weights=frozen"), False, True, False),
        ((EMA, "trd.rewrite.weights=frozen"), True, False, False),
        ((LORA, "trd.teacher.scorer=generation", *TOP_K), False, True, False),
        ((LORA, EMA, "trd.teacher.scorer=prefill", *TOP_K), False, True, True),
        ((LORA, "method=trd_opd"), True, False, False),
        ((LORA, "method=opsd"), False, False, False),
        ((LORA, "method=opd", "trd.teacher.weights=frozen"), True, False, False),
    ],
)
def test_a_lora_student_needs_no_server_for_itself(overrides, has_server, asks_student, asks_average):
    plan = trd_of(*overrides).teacher_plan
    asked = (plan.has_server, plan.asks_student, Holder.AVERAGE in plan.servers)
    assert asked == (has_server, asks_student, asks_average)


def test_one_gpu_is_enough_for_student_and_teacher():
    config = compose_run(LORA, "cluster=cpu").copy()
    config.distillation.enabled = trd_of(LORA).has_server
    assert required(config)["GPU"] == 1


@pytest.mark.parametrize(
    ("overrides", "reason", "remedy"),
    [
        ((EMA,), "trains all its weights or merges its adapters", "set trd.rewrite.weights=live or frozen"),
        ((EMA, LORA, MERGED), "a second adapter on its server", "or train adapters"),
        (
            (LORA, "trd.rewrite.weights=ema"),
            "trd.rewrite.weights=ema with trd.teacher.weights=frozen",
            "live or frozen",
        ),
        (
            (EMA, "trd.teacher.scorer=generation", *TOP_K),
            "weights=ema are only in the training process",
            "scorer=engine",
        ),
        (
            (LORA, "trd.teacher.weights=live", "trd.teacher.scorer=generation", *TOP_K),
            "weights=live are only in the training process",
            "set trd.teacher.scorer=engine",
        ),
    ],
)
def test_weights_that_no_server_has(overrides, reason, remedy):
    with pytest.raises(InstantiationException) as caught:
        trd_of(*overrides)
    message = str(caught.value.__cause__)
    assert reason in message
    assert remedy in message


def prepared(*overrides, limit=512):
    config = compose_run(*overrides).copy()
    student_server.prepare(config, trd_of(*overrides), limit=limit)
    return config.actor_rollout_ref.rollout


def test_the_server_holds_the_average_beside_the_students_adapter():
    assert prepared(LORA, EMA).engine_kwargs.vllm.max_loras == 2
    assert "max_loras" not in prepared(LORA).engine_kwargs.vllm


def test_a_server_that_scores_tells_its_own_distribution():
    rollout = prepared(LORA, "trd.teacher.scorer=generation", *TOP_K)
    assert (rollout.logprobs_mode, rollout.engine_kwargs.vllm.max_logprobs) == ("raw_logprobs", 5)
    assert prepared(LORA).logprobs_mode == "processed_logprobs"


def test_the_server_of_a_full_student_is_left_as_it_is():
    first = compose_run("trd.rewrite.weights=live").actor_rollout_ref.rollout
    assert prepared("trd.rewrite.weights=live") == first


def test_what_the_server_cannot_hold_is_refused():
    scored = (LORA, "trd.teacher.scorer=generation", *TOP_K)
    with pytest.raises(
        ValueError, match=r"weights=frozen: the refine context needs \d+ tokens on the student's server"
    ):
        prepared(LORA, limit=100)
    with pytest.raises(ValueError, match="the refine context needs 193 tokens on the student's server, which has 192"):
        prepared(*scored, limit=192)
    prepared(*scored, limit=193)
    with pytest.raises(ValueError, match=r"rollout\.name=sglang: only the servers of vllm answer without"):
        prepared(LORA, "actor_rollout_ref.rollout.name=sglang")


def test_adapters_that_the_student_begins_with_are_no_frozen_teacher():
    overrides = (LORA, "actor_rollout_ref.model.lora_adapter_path=adapters")
    config = compose_run(*overrides).copy()
    config.distillation.enabled = False
    with pytest.raises(
        ValueError, match=r"teacher\.weights=frozen with .*lora_adapter_path: the student at step 0 has"
    ):
        verl_keys.check_objective(config, trd_of(*overrides))


class Client:
    """Stands for verl's `LLMServerClient` of one server."""

    def __init__(self):
        self.requests = []

    async def generate(self, request_id, *, prompt_ids, sampling_params, **extra):
        self.requests.append(extra)
        return TokenOutput(token_ids=[], stop_reason="aborted", extra_fields={"finish_reason": "abort"})


@pytest.mark.parametrize(
    ("overrides", "asked", "extra"),
    [
        ((), "teacher", {"topk": 1}),
        ((LORA,), "student", {"topk": 1}),
        ((LORA, EMA), "student", {"topk": 1, "averaged": True}),
        ((LORA, "trd.rewrite.weights=live"), "student", {}),
        (("method=trd_opd", "trd.rewrite.weights=live", "trd.teacher.scorer=prefill"), "student", {}),
    ],
)
def test_a_rewrite_goes_to_the_server_that_has_the_weights(overrides, asked, extra, tokenizer):
    clients = {"teacher": Client(), "student": Client()}
    teacher = TeacherClient(
        config=trd_of(*overrides),
        client=clients["teacher"],
        student_client=clients["student"],
        tokenizer=tokenizer,
        eos_token_ids=[tokenizer.eos_token_id],
        student_eos_token_id=tokenizer.eos_token_id,
        max_response_length=16,
        template_kwargs={},
    )
    asyncio.run(teacher.rewrite(PROMPT, tokenizer.encode("47"), "46"))
    assert {name: client.requests for name, client in clients.items() if client.requests} == {asked: [extra]}
