"""Adapters on the student's server: how requests name them, and how the average gets there."""

import argparse
import asyncio
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from verl.workers.rollout.base import get_rollout_class
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout import ServerAdapter
from verl.workers.rollout.vllm_rollout.utils import VLLM_LORA_INT_ID, vLLMColocateWorkerExtension

from verl_ext.cpu.vllm_adapters import only_to_an_adapted_head
from verl_ext.server import lora
from verl_ext.server.lora import AVERAGE, AdapterExtension, AdapterRollout
from verl_ext.server.topk_server import TopKReplica, TopKServer

VOCAB = 300


class Worker:
    """Stands for vLLM's worker, whose class takes in verl's extension as a base."""

    def __init__(self):
        self.loras = {}

    def remove_lora(self, number):
        self.loras.pop(number, None)

    def add_lora(self, request):
        self.loras[request.lora_int_id] = (request.lora_name, request.lora_tensors)


@pytest.fixture
def worker(monkeypatch):
    """A worker to which both adapters can be sent; the transport hands over what is put into `arriving`."""

    def receive(self, peft_config=None, base_sync_done=False, use_shm=False):
        # As verl does: the student's adapter goes first, whatever comes.
        self.remove_lora(VLLM_LORA_INT_ID)
        self._update_weights(self.arriving, peft_config=peft_config, base_sync_done=base_sync_done)

    monkeypatch.setattr(vLLMColocateWorkerExtension, "update_weights_from_ipc", receive)
    monkeypatch.setattr(vLLMColocateWorkerExtension, "__new__", lambda cls: object.__new__(cls))
    return type("ExtendedWorker", (Worker, AdapterExtension), {})()


def test_the_average_and_the_students_adapter_lie_side_by_side(worker):
    for averaged, values in ((True, [("a", 1.0)]), (False, None), (True, [("a", 2.0)]), (False, None)):
        worker.arriving = values or [("a", SimpleNamespace(clone=lambda: 3.0))]
        worker.update_weights_from_ipc(peft_config={"r": 8}, base_sync_done=True, use_shm=True, averaged=averaged)
    assert worker.loras == {VLLM_LORA_INT_ID: ("123", {"a": 3.0}), AVERAGE.lora_int_id: ("average", {"a": 2.0})}


def test_the_extension_takes_no_name_of_vllms_worker():
    """vLLM refuses an extension that does; verl's own does not."""
    ours = {name for name in vars(AdapterExtension) if not name.startswith("__")}
    assert ours <= set(vars(vLLMColocateWorkerExtension))


@pytest.fixture
def sent(monkeypatch):
    """What verl's end of the transport was given, in order."""
    calls = []

    async def send(self, weights, global_steps=None, **kwargs):
        calls.append((weights, global_steps, kwargs))

    monkeypatch.setattr(ServerAdapter, "update_weights", send)
    return calls


def update(average, **kwargs):
    rollout = object.__new__(AdapterRollout)
    rollout.average = average
    asyncio.run(rollout.update_weights("student", global_steps=7, **kwargs))


def test_the_average_goes_before_the_student(sent):
    update(lambda: "average", peft_config={"r": 8}, base_sync_done=True)
    common = {"peft_config": {"r": 8}, "base_sync_done": True}
    assert sent == [("average", 7, {**common, "averaged": True}), ("student", 7, common)]


@pytest.mark.parametrize(("average", "base_sync_done"), [(None, True), (lambda: "average", False)])
def test_without_an_average_or_while_base_weights_are_sent_nothing_is_added(sent, average, base_sync_done):
    update(average, peft_config={"r": 8}, base_sync_done=base_sync_done)
    assert [weights for weights, *_ in sent] == ["student"]


def test_verl_finds_our_end_of_the_transport():
    lora.register()
    assert get_rollout_class("vllm") is AdapterRollout


def make_server(**fields):
    server = object.__new__(TopKServer)
    lora = SimpleNamespace(lora_rank=8, lora={"merge": False}, path="student", tokenizer=range(VOCAB))
    server.__dict__ |= {"model_config": lora, **fields}
    return server


def test_room_for_as_many_adapters_as_asked_for():
    for kwargs, room in (({"vllm": {"max_loras": 2}}, 2), ({"vllm": None}, 1), ({}, 1)):
        server = make_server(config=SimpleNamespace(engine_kwargs=kwargs))
        assert server._with_room(argparse.Namespace(max_loras=1)).max_loras == room


def test_servers_of_lora_students_take_in_our_extension():
    server = make_server()
    assert server._get_worker_extension_cls() == "verl_ext.server.lora.AdapterExtension"
    server.model_config.lora["merge"] = True
    assert server._get_worker_extension_cls().endswith("utils.vLLMColocateWorkerExtension")


def probe(log_probs, monkeypatch):
    async def answer(self, *args, **kwargs):
        return TokenOutput(token_ids=[], stop_reason="completed", extra_fields={"topk_log_probs": np.array(log_probs)})

    monkeypatch.setattr(TopKServer, "generate", answer)
    asyncio.run(make_server().check_weights())


def test_a_server_without_weights_ends_the_run(monkeypatch):
    uniform = -math.log(VOCAB)
    with pytest.raises(RuntimeError, match=r"server of student answers uniformly, each log-prob being -5\.70"):
        probe([[uniform], [uniform + 1e-3], [uniform - 1e-3]], monkeypatch)


@pytest.mark.parametrize("log_probs", [[[-0.1], [-2.0], [-5.5]], [[-5.70], [-5.70], [-5.5]], np.zeros((0, 1))])
def test_a_server_with_weights_goes_on(monkeypatch, log_probs):
    probe(log_probs, monkeypatch)


@pytest.mark.parametrize("role", ["is_teacher_model", "is_reward_model", None])
def test_servers_of_reward_models_are_verls_own(monkeypatch, role):
    def init(self, **roles):
        self.server_class, self.is_reward_model = "verl's", roles.get("is_reward_model", False)

    monkeypatch.setattr("verl.workers.rollout.vllm_rollout.vllm_async_server.vLLMReplica.__init__", init)
    replica = object.__new__(TopKReplica)
    replica.__init__(**({role: True} if role else {}))
    assert (replica.server_class == "verl's") is (role == "is_reward_model")


def test_nothing_is_added_to_a_head_that_no_adapter_changes():
    added = []
    add = only_to_an_adapted_head(lambda self, *args, **kwargs: added.append((args, kwargs)))
    zeros, ones = torch.zeros(2, 1, 5, 4), torch.ones(2, 1, 5, 4)
    add(None, "y", "x", ones, zeros, 1.0)
    assert added == []
    add(None, "y", "x", ones, ones, 1.0)
    assert len(added) == 1
