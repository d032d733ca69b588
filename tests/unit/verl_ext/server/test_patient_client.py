"""Requests that fail, that never return, and servers that are away for a while."""

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError
from verl.workers.rollout.llm_server import LLMServerClient
from vllm.v1.engine.exceptions import EngineDeadError

from verl_ext.server import patient_client
from verl_ext.server.patient_client import PatientClient

NEVER = "never"


@pytest.fixture
def ask(monkeypatch):
    """`ask(answers, ...)`: the result of one request, and how often it was sent."""
    monkeypatch.setattr(patient_client, "PAUSE_S", 0.01)

    def run(answers, *, timeout_s=5.0, retries=2):
        sent, waiting = [], list(answers)

        async def generate(self, request_id, **request):
            sent.append(request_id)
            answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            if answer is NEVER:
                await asyncio.sleep(3600)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(LLMServerClient, "generate", generate)
        faults = SimpleNamespace(request_timeout_s=timeout_s, request_retries=retries)
        client = PatientClient.of(LLMServerClient(SimpleNamespace(trd=SimpleNamespace(faults=faults)), None))
        try:
            return asyncio.run(client.generate("id", prompt_ids=[1])), len(sent)
        except Exception as error:
            return error, len(sent)

    return run


def test_an_answer_is_an_answer(ask):
    assert ask(["answer"]) == ("answer", 1)


@pytest.mark.parametrize("failure", [RuntimeError("no"), OSError("no")])
def test_what_failed_is_asked_again_as_often_as_allowed(ask, failure):
    assert ask([failure, "answer"]) == ("answer", 2)
    assert ask([failure]) == (failure, 3)
    assert ask([failure], retries=0) == (failure, 1)


def test_what_never_returns_is_asked_again_and_then_given_up(ask):
    assert ask([NEVER, "answer"], timeout_s=0.05) == ("answer", 2)
    error, sent = ask([NEVER], timeout_s=0.05)
    assert isinstance(error, TimeoutError)
    assert str(error) == "no answer within 0.05 s (asked 3 times)"
    assert sent == 3


def test_a_wrong_request_is_not_sent_again(ask):
    error = ValueError("no room")
    assert ask([error]) == (error, 1)


@pytest.mark.parametrize(
    "away", [ActorDiedError(), EngineDeadError(), RuntimeError("No available servers in load balancer")]
)
def test_a_server_that_is_away_is_waited_for(ask, away):
    assert ask([away] * 9 + ["answer"], retries=0) == ("answer", 10)
    error, sent = ask([away], timeout_s=0.1, retries=0)
    assert error is away
    assert sent > 2
