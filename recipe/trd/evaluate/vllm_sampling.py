"""Draws the samples that are missing, with vLLM in this process."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.trd.evaluate import settings
from recipe.trd.evaluate.suites import SuiteProblem

MAX_IN_FLIGHT = 2048
"""Requests in the engine at a time: a few hundred keep it busy, and each needs memory."""


@dataclass(frozen=True)
class WantedSample:
    """One sample to draw."""

    problem_set: str
    problem: SuiteProblem
    sample: int


@dataclass(frozen=True)
class Chat:
    """How a conversation becomes a prompt: a chat template (None is the tokenizer's own) and its arguments."""

    template: str | None
    arguments: Mapping[str, Any]


def prompt_ids(tokenizer: Any, problem: SuiteProblem, chat: Chat) -> list[int]:
    """Token ids of a problem's prompt, up to where the response begins.

    Raises:
        ValueError: there is no chat template.
    """
    if chat.template is None and not tokenizer.chat_template:
        raise ValueError(
            "the tokeniser has no chat template: give one with --chat-template FILE (a base model has none)"
        )
    return list(
        tokenizer.apply_chat_template(
            [dict(message) for message in problem.messages],
            chat_template=chat.template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            **chat.arguments,
        )
    )


class Engine:
    """vLLM with one model. Created only when samples are missing: it needs a device and takes a while to start."""

    def __init__(self, folder: Path, *, adapter: Path | None, options: Mapping[str, Any]):
        # In this process: the schedule does not depend on timing, and `kill -9` leaves no process behind.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm import LLM
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform

        lora = {} if adapter is None else {"enable_lora": True, "max_lora_rank": _lora_rank(adapter)}
        # vLLM resets the generator of a request after a part of its prompt, which torch on the CPU cannot do.
        whole = {"enable_chunked_prefill": False} if current_platform.is_cpu() else {}
        self._llm = LLM(model=str(folder), **{**lora, **whole, **options})
        self._adapter = None if adapter is None else LoRARequest("evaluated", 1, str(adapter))
        self.tokenizer = self._llm.get_tokenizer()
        self.max_model_len: int = self._llm.llm_engine.model_config.max_model_len
        parallel = self._llm.llm_engine.vllm_config.parallel_config
        self.num_devices: int = parallel.world_size_across_dp
        self.dtype = str(self._llm.llm_engine.model_config.dtype)

    def check_lengths(self, lengths: Sequence[int], *, max_tokens: int) -> None:
        """Refuse prompts that leave no room for a whole response: it would be cut and count as wrong.

        Raises:
            ValueError: the message names the length that fits.
        """
        room = self.max_model_len - max(lengths)
        if room < max_tokens:
            raise ValueError(
                f"the longest prompt has {max(lengths)} tokens and the model takes {self.max_model_len} in all: set "
                f"--max-tokens {max(room, 0)} or less, or raise the limit with --engine max_model_len=N"
            )

    def draw(
        self, wanted: Sequence[WantedSample], prompts: Mapping[str, list[int]], sampling: settings.Sampling
    ) -> Iterator[tuple[WantedSample, dict[str, Any]]]:
        """Draw samples, and yield each when it is finished.

        Args:
            wanted: samples.
            prompts: problem's id to its token ids.
            sampling: how they are drawn.

        Yields:
            The sample, and its text, lengths and finish reason.
        """
        from vllm.inputs import tokens_input

        engine = self._llm.llm_engine
        # An iterator: each round of the loop continues where the last one stopped.
        waiting = iter(enumerate(wanted))
        running: dict[str, WantedSample] = {}
        while True:
            for number, item in waiting:
                running[str(number)] = item
                prompt = tokens_input(prompts[item.problem.id])
                parameters = _parameters(sampling, item)
                engine.add_request(str(number), prompt, parameters, lora_request=self._adapter)
                if len(running) >= MAX_IN_FLIGHT:
                    break
            if not running:
                return
            for output in engine.step():
                if output.finished:
                    yield running.pop(output.request_id), _drawn(output)


def _lora_rank(adapter: Path) -> int:
    """Smallest rank that vLLM supports and the adapter fits in."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)


def _parameters(sampling: settings.Sampling, item: WantedSample) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=1,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        seed=settings.sample_seed(sampling.seed, item.problem.id, item.sample),
        skip_special_tokens=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _drawn(output: Any) -> dict[str, Any]:
    completion = output.outputs[0]
    return {
        "finish_reason": completion.finish_reason,
        "num_tokens": len(completion.token_ids),
        "num_prompt_tokens": len(output.prompt_token_ids),
        "text": completion.text,
    }
