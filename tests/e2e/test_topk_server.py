"""Top-k log-probs from a real vLLM engine: with the generation, from a second pass, and from Hugging Face."""

import asyncio
from functools import partial
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.e2e

TOP_K = 32


@pytest.fixture(scope="module")
def answers(world):
    """Generated responses with their rows, and the rows of a second pass over the same tokens."""
    from verl_ext.plugin import register_vllm

    register_vllm()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from verl_ext.server.topk_server import TopKServer

    tokenizer = AutoTokenizer.from_pretrained(world / "teacher")
    problems = [f"Compute {first}-3+8-{last}" for first, last in [(19, 2), (40, 7), (8, 1), (33, 9)]]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": problem}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        for problem in problems
    ]
    arguments = AsyncEngineArgs(
        model=str(world / "teacher"),
        dtype="float32",
        max_model_len=256,
        enforce_eager=True,
        # Of the machine's memory, on a CPU; the default wants nearly all of it.
        gpu_memory_utilization=0.15,
        max_logprobs=TOP_K,
        logprobs_mode="raw_logprobs",
    )

    async def ask():
        server = object.__new__(TopKServer)
        server.engine = AsyncLLM.from_engine_args(arguments)
        server.config, server.global_steps = SimpleNamespace(max_model_len=256), 0
        server._submission_paused, server._admitting = False, 0
        generate = partial(server.generate, topk=TOP_K)
        sampling = {"max_tokens": 64, "temperature": 0.7, "top_p": 0.9, "top_k": -1}
        try:
            generated = await asyncio.gather(*(generate(prompt, sampling, uuid4().hex) for prompt in prompts))
            scored = await asyncio.gather(
                *(
                    generate([*prompt, *output.token_ids], {}, uuid4().hex, score_from=len(prompt))
                    for prompt, output in zip(prompts, generated, strict=True)
                )
            )
            assert server._admitting == 0
        finally:
            server.engine.shutdown()
        return list(zip(prompts, generated, scored, strict=True))

    return asyncio.run(ask())


def test_generation_and_prefill_agree(answers):
    for _, generated, scored in answers:
        assert generated.extra_fields["finish_reason"] == "stop"
        one, two = generated.extra_fields, scored.extra_fields
        assert one["topk_ids"].shape == two["topk_ids"].shape == (len(generated.token_ids), TOP_K)
        # Near-ties may change places between two passes; the log-probs of each rank may not.
        np.testing.assert_allclose(one["topk_log_probs"], two["topk_log_probs"], atol=1e-4)
        assert (one["topk_ids"][:, 0] == two["topk_ids"][:, 0]).all()


def test_rows_are_the_models_own_distribution(answers, world):
    model = AutoModelForCausalLM.from_pretrained(world / "teacher", dtype=torch.float32).eval()
    for prompt, generated, _ in answers:
        response = list(generated.token_ids)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0]
        rows = logits[len(prompt) - 1 : len(prompt) + len(response) - 1].log_softmax(-1)
        expected = rows.topk(TOP_K, -1)
        np.testing.assert_allclose(generated.extra_fields["topk_log_probs"], expected.values.numpy(), atol=1e-3)
        assert (generated.extra_fields["topk_ids"][:, 0] == expected.indices[:, 0].numpy()).all()
