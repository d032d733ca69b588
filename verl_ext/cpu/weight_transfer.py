"""A weight transfer that ends when the receiving vLLM worker is gone."""

import zmq

RECEIVE_TIMEOUT_S = 90


def limit_waits() -> None:
    """Bound every wait of verl's `BucketedWeightSender` in this process by `RECEIVE_TIMEOUT_S`; safe to call again.

    Without it a receiver that raised or died leaves the trainer in `recv()` for ever.
    """
    # Deferred: the module pulls in vLLM, and this one is imported wherever verl is.
    import verl.workers.rollout.vllm_rollout.bucketed_weight_transfer as transfer

    if transfer.BucketedWeightSender.async_send_weights.__name__ == "send_or_explain":
        return

    init_socket = transfer.BucketedWeightSender._init_socket
    send = transfer.BucketedWeightSender.async_send_weights

    def init_socket_with_timeout(self: transfer.BucketedWeightSender) -> None:
        init_socket(self)
        # Sending blocks as well where nobody has connected yet.
        self.socket.setsockopt(zmq.SNDTIMEO, RECEIVE_TIMEOUT_S * 1000)
        self.socket.setsockopt(zmq.RCVTIMEO, RECEIVE_TIMEOUT_S * 1000)
        self.socket.setsockopt(zmq.LINGER, 0)

    async def send_or_explain(self: transfer.BucketedWeightSender, weights: object) -> None:
        try:
            await send(self, weights)
        except zmq.Again as error:
            raise RuntimeError(
                f"the rollout server took no weights for {RECEIVE_TIMEOUT_S} s: its vLLM worker died or failed to load "
                "them; its own error stands in the log above"
            ) from error

    transfer.BucketedWeightSender._init_socket = init_socket_with_timeout
    transfer.BucketedWeightSender.async_send_weights = send_or_explain
