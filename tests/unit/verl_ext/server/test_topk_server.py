"""Top-k log-probs out of vLLM's flat containers, and requests as an engine sees them. A real engine: tests/e2e."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from vllm.logprobs import (
    FlatLogprobs,
    append_logprobs_for_next_position,
    create_prompt_logprobs,
    create_sample_logprobs,
)
from vllm.sampling_params import RequestOutputKind

from verl_ext.server.lora import AVERAGE
from verl_ext.server.topk_server import TopKServer, unpack_topk

TOP_K = 3
POSITIONS = [
    # token at the position, its log-prob and rank; then the K best
    ([7, 4, 5, 6], [-3.0, -0.5, -1.5, -2.5], 4),
    ([9, 9, 1, 2], [-0.25, -0.25, -2.0, -4.0], 1),  # sampled the best: it is there twice
    ([2, 8, 2, 3], [-1.25, -0.75, -1.25, -3.5], 2),
]
BEST_IDS = [[4, 5, 6], [9, 1, 2], [8, 2, 3]]
BEST_LOG_PROBS = [[-0.5, -1.5, -2.5], [-0.25, -2.0, -4.0], [-0.75, -1.25, -3.5]]


def fill(container, positions=POSITIONS):
    for ids, log_probs, rank in positions:
        append_logprobs_for_next_position(container, ids, log_probs, [None] * len(ids), rank, TOP_K)
    return container


def generated():
    return fill(create_sample_logprobs(flat_logprobs=True))


def prompt_and_response():
    """Two tokens of a context, of which the first has no distribution, then three of a response."""
    context = ([0, 1, 2, 3], [-9.0, -8.0, -8.5, -8.75], 50)
    return fill(create_prompt_logprobs(flat_logprobs=True), [context, *POSITIONS])


def test_generated_tokens_have_a_row_each_without_the_sampled_one():
    ids, log_probs, _ = unpack_topk(generated(), TOP_K, 0)
    assert ids.tolist() == BEST_IDS
    assert log_probs.tolist() == BEST_LOG_PROBS
    assert (ids.dtype, log_probs.dtype) == (np.int32, np.float32)


def test_rows_of_a_prompt_begin_where_asked():
    ids, log_probs, own = unpack_topk(prompt_and_response(), TOP_K, 2)
    assert ids.tolist() == BEST_IDS
    assert own.tolist() == [values[0] for _, values, _ in POSITIONS]
    assert log_probs.tolist() == BEST_LOG_PROBS
    assert unpack_topk(prompt_and_response(), TOP_K, 4)[0].tolist() == BEST_IDS[-1:]


def test_rows_agree_with_vllms_own_reading():
    flat = generated()
    ids, log_probs, _ = unpack_topk(flat, TOP_K, 0)
    for position, row, values in zip(flat, ids, log_probs, strict=True):
        by_rank = {entry.rank: (token, entry.logprob) for token, entry in position.items()}
        assert [by_rank[rank] for rank in (1, 2, 3)] == list(zip(row.tolist(), values.tolist(), strict=True))


@pytest.mark.parametrize("container", [FlatLogprobs(), create_prompt_logprobs(flat_logprobs=True)])
def test_nothing_after_the_position_gives_no_rows(container):
    ids, log_probs, _ = unpack_topk(container, TOP_K, 1)
    assert ids.shape == log_probs.shape == (0, TOP_K)


def test_arrays_do_not_keep_the_container_alive():
    # They travel through Ray; a view would drag the K + 1st column along.
    ids, log_probs, _ = unpack_topk(generated(), TOP_K, 0)
    assert ids.base is None
    assert log_probs.base is None


class Engine:
    """Stands for vLLM's engine: one final output, or an error."""

    def __init__(self, output):
        self.output = output
        self.requests, self.adapters = [], []

    async def generate(self, *, prompt, sampling_params, request_id, lora_request):
        self.requests.append((prompt, sampling_params))
        self.adapters.append(lora_request)
        if isinstance(self.output, Exception):
            raise self.output
        yield self.output


@pytest.fixture
def make_server():
    def make(output):
        server = object.__new__(TopKServer)
        server.engine, server.config, server.global_steps = Engine(output), SimpleNamespace(max_model_len=10), 5
        server._submission_paused, server._rejecting, server._admitting = False, False, 0
        return server

    return make


def output_of(logprobs=None, prompt_logprobs=None, token_ids=(7, 9, 2), finish_reason="stop"):
    completion = SimpleNamespace(token_ids=token_ids, logprobs=logprobs, finish_reason=finish_reason)
    return SimpleNamespace(outputs=[completion], prompt_logprobs=prompt_logprobs)


def ask(server, prompt_ids=(1, 2), sampling_params=None, **kwargs):
    sampling_params = {"max_tokens": 4, "temperature": 0.7, "top_p": 0.9, "top_k": 20} | (sampling_params or {})
    return asyncio.run(server.generate(list(prompt_ids), sampling_params, "id", topk=TOP_K, **kwargs))


def test_generation_answers_with_tokens_and_their_rows(make_server):
    server = make_server(output_of(generated()))
    answer = ask(server)
    ((prompt, sampling),) = server.engine.requests
    assert (answer.token_ids, answer.stop_reason) == ([7, 9, 2], "completed")
    assert answer.extra_fields["finish_reason"] == "stop"
    assert answer.extra_fields["topk_ids"].tolist() == BEST_IDS
    assert answer.extra_fields["global_steps"] == 5
    assert prompt["prompt_token_ids"] == [1, 2]
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (4, 0.7, 0.9, 20)
    assert (sampling.logprobs, sampling.prompt_logprobs, sampling.flat_logprobs) == (TOP_K, None, True)
    assert (sampling.detokenize, sampling.output_kind) == (False, RequestOutputKind.FINAL_ONLY)


def test_scoring_answers_with_the_rows_of_the_response(make_server):
    server = make_server(output_of(prompt_logprobs=prompt_and_response(), token_ids=(8,)))
    answer = ask(server, prompt_ids=(3, 0, 7, 9, 2), score_from=2)
    ((_, sampling),) = server.engine.requests
    assert answer.token_ids == []
    assert answer.extra_fields["topk_ids"].tolist() == BEST_IDS
    assert (sampling.max_tokens, sampling.logprobs, sampling.prompt_logprobs) == (1, None, TOP_K)


def test_requests_name_the_average_or_no_adapter(make_server):
    server = make_server(output_of(generated()))
    ask(server)
    ask(server, averaged=True)
    assert server.engine.adapters == [None, AVERAGE]


@pytest.mark.parametrize(("num_prompt", "max_tokens"), [(2, 4), (6, 4), (7, 3), (9, 1)])
def test_generation_stops_where_the_context_of_the_model_ends(make_server, num_prompt, max_tokens):
    server = make_server(output_of(generated()))
    ask(server, prompt_ids=[1] * num_prompt)
    assert server.engine.requests[0][1].max_tokens == max_tokens


def test_prompt_without_room_for_a_token_is_refused(make_server):
    with pytest.raises(ValueError, match=r"10 tokens leaves no room in max_model_len=10"):
        ask(make_server(output_of(generated())), prompt_ids=[1] * 10)


def test_refused_and_emptied_requests_are_aborts(make_server):
    server = make_server(output_of(generated()))
    server._submission_paused = server._rejecting = True
    refused = ask(server)
    assert server.engine.requests == []
    emptied = ask(make_server(SimpleNamespace(outputs=[], prompt_logprobs=None)))
    for answer in (refused, emptied):
        assert (answer.token_ids, answer.stop_reason) == ([], "aborted")
        assert answer.extra_fields["finish_reason"] == "abort"


def test_abort_while_generating_keeps_its_rows(make_server):
    answer = ask(make_server(output_of(generated(), finish_reason="abort")))
    assert (answer.stop_reason, answer.extra_fields["finish_reason"]) == ("aborted", "abort")


@pytest.mark.parametrize("output", [output_of(generated()), RuntimeError("engine dead")])
def test_no_request_is_left_counted_as_admitted(make_server, output):
    # verl waits for this counter to become 0 before it updates weights.
    server = make_server(output)
    if isinstance(output, Exception):
        with pytest.raises(RuntimeError, match="engine dead"):
            ask(server)
    else:
        ask(server)
    assert server._admitting == 0
