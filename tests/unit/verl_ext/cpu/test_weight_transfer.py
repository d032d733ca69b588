"""The sender of verl's weight transfer, with real ZMQ sockets and shared memory, when nobody receives."""

import asyncio
import threading
import time

import pytest
import torch


@pytest.fixture
def transfer(monkeypatch):
    from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer

    from verl_ext.cpu import weight_transfer

    for name in ("_init_socket", "async_send_weights"):
        monkeypatch.setattr(
            bucketed_weight_transfer.BucketedWeightSender,
            name,
            getattr(bucketed_weight_transfer.BucketedWeightSender, name),
        )
    monkeypatch.setattr(weight_transfer, "RECEIVE_TIMEOUT_S", 3)
    weight_transfer.limit_waits()
    weight_transfer.limit_waits()
    return bucketed_weight_transfer


def send(transfer, address):
    sender = transfer.BucketedWeightSender(zmq_handle=address, bucket_size_mb=1, use_shm=True)
    weights = [("weight", torch.arange(12.0).reshape(3, 4))]
    asyncio.run(sender.async_send_weights(iter(weights)))


def test_a_receiver_that_never_comes_ends_the_wait_with_a_message(transfer, tmp_path):
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="its vLLM worker died or failed to load"):
        send(transfer, f"ipc://{tmp_path}/nobody.sock")
    assert time.monotonic() - started < 30


def test_weights_arrive_when_there_is_one(transfer, tmp_path):
    address, received = f"ipc://{tmp_path}/somebody.sock", {}

    def receive():
        receiver = transfer.BucketedWeightReceiver(zmq_handle=address, device=torch.device("cpu"), use_shm=True)
        receiver.receive_weights(lambda weights, is_last: received.update((n, w.clone()) for n, w in weights))

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    send(transfer, address)
    thread.join(timeout=10)
    assert not thread.is_alive()
    torch.testing.assert_close(received["weight"], torch.arange(12.0).reshape(3, 4))
