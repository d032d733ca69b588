"""How fast a teacher writes y_r, with and without the top-k log-probs of every token that it writes.

    python benchmarks/teacher_speed.py --model data/tiny_world/teacher                          # CPU
    python benchmarks/teacher_speed.py --random 1536 28 --requests 256 --out teacher.json       # GPU, 1.8B parameters

One vLLM engine, requests of the kind that the teacher's server makes (flat log-probs, no detokenisation, one final
output), all at once, responses of a fixed length. Both kinds take turns; the first turn of each warms up. Top-k
log-probs are unpacked into arrays as the server does it.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

if not os.path.exists("/dev/nvidia0"):
    os.environ.setdefault("VERL_PLATFORM", "cpu")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

GOAL = 0.95


def random_model(folder: str, hidden_size: int, num_layers: int) -> str:
    """A Qwen2-shaped model with random weights and a vocabulary of 151,936; no tokenizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    heads = hidden_size // 128
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=max(one for one in (1, 2, 4, 8) if heads % one == 0 and one <= heads // 2),
        intermediate_size=hidden_size * 6 // 128 * 128,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


async def turn(engine, options: argparse.Namespace, top_k: int | None) -> float:
    """Tokens a second of one round of requests."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    from verl_ext.server.topk_server import unpack_topk

    sampling = SamplingParams(
        max_tokens=options.response,
        ignore_eos=True,
        temperature=1.0,
        logprobs=top_k,
        flat_logprobs=top_k is not None,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )

    async def request(index: int) -> int:
        prompt = TokensPrompt(prompt_token_ids=[10 + (index * 7 + i) % 80 for i in range(options.prompt)])
        async for output in engine.generate(prompt, sampling, uuid4().hex):
            final = output.outputs[0]
        if top_k is not None:
            ids, _, _ = unpack_topk(final.logprobs, top_k, 0)
            assert ids.shape == (options.response, top_k)
        return len(final.token_ids)

    start = time.monotonic()
    tokens = sum(await asyncio.gather(*(request(index) for index in range(options.requests))))
    return tokens / (time.monotonic() - start)


async def measure(options: argparse.Namespace, model: str) -> dict[str, float]:
    """Best tokens a second of both kinds."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        model=model,
        skip_tokenizer_init=True,
        max_model_len=options.prompt + options.response + 1,
        max_logprobs=options.top_k,
        logprobs_mode="raw_logprobs",
        enforce_eager=options.eager,
        gpu_memory_utilization=options.memory,
    )
    engine = AsyncLLM.from_engine_args(arguments)
    rates: dict[str, float] = {}
    for index in range(options.rounds + 1):
        for name, top_k in (("plain", None), ("top_k", options.top_k)):
            rate = await turn(engine, options, top_k)
            if index > 0:
                rates[name] = max(rates.get(name, 0.0), rate)
            print(f"{name:6} {rate:10.0f} tokens/s{'' if index else '  (warm-up)'}", flush=True)
    engine.shutdown()
    return rates


def main() -> int:
    """Print the ratio, and PASS or FAIL."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model")
    parser.add_argument("--random", type=int, nargs=2, metavar=("HIDDEN_SIZE", "LAYERS"), help="a random one instead")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs")
    parser.add_argument("--memory", type=float, default=0.5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if bool(options.model) == bool(options.random):
        parser.error("give --model or --random")
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model(folder, *options.random)
        rates = asyncio.run(measure(options, model))
    ratio = rates["top_k"] / rates["plain"]
    if options.out:
        card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        settings = {key: value for key, value in vars(options).items() if key != "out"}
        record = {"gpu": card, "options": settings, "tokens_per_s": rates, "ratio": ratio}
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    verdict = "PASS" if ratio >= GOAL else "FAIL"
    print(f"{verdict} with top-{options.top_k} log-probs {ratio:.3f} of the tokens a second without (goal {GOAL})")
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
