"""verl's vLLM server, and beside its own answers the top-k log-probs of what it generates or of what it is shown.

verl asks vLLM for one log-prob a generated token and unpacks prompt log-probs from dictionaries. Here they are flat
arrays without detokenisation: a teacher that writes y_r has scored it as well, without a second pass
(benchmarks/teacher_speed.py measures what the top-k costs it). With `logprobs_mode=raw_logprobs` they are the model's
own distribution at temperature 1, whatever temperature, top-p or top-k the tokens were drawn with.

Where the student trains adapters (LoRA), these answers of its server come from the base weights, which are the student
at step 0, or from the average of the adapter: no other server is needed.
"""

import argparse
import math
from typing import Any
from uuid import uuid4

import numpy as np
import ray
from verl.workers.rollout.replica import RolloutReplicaRegistry, TokenOutput
from verl.workers.rollout.vllm_rollout.utils import VLLM_LORA_INT_ID, VLLM_LORA_NAME, VLLM_LORA_PATH
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica
from vllm import SamplingParams
from vllm.inputs import TokensPrompt
from vllm.logprobs import FlatLogprobs
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from verl_ext.server.lora import AVERAGE, AdapterExtension

PROBE = [0, 1, 2, 3]
"""Token ids that tell whether a server has its weights."""


class TopKServer(vLLMHttpServer):
    """verl's server with one more argument to `generate`; without it every answer is verl's own."""

    async def generate(  # type: ignore[override]
        self,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        request_id: str,
        topk: int | None = None,
        score_from: int | None = None,
        averaged: bool = False,
        as_student: bool = False,
        **kwargs: Any,
    ) -> TokenOutput:
        """Generate, or score.

        Args:
            prompt_ids: token ids of the context, or of context + response when scoring.
            sampling_params: `max_tokens`, `temperature`, `top_p`, `top_k` as verl names them; unused when scoring.
            request_id: unique id of the request.
            topk: number K of log-probs a token; None hands the request to verl's own method.
            score_from: position of the first token to score; None generates.
            averaged: answer with the average of a LoRA student's adapter; else with the base weights.
            as_student: answer with its adapter as it is.
            kwargs: verl's further arguments, for requests without `topk`.

        Returns:
            Token ids with `extra_fields`: `finish_reason` ("stop", "length" or "abort"), `topk_ids` int32 [R, K] and
            `topk_log_probs` float32 [R, K], best first; row i is the distribution of generated token i, or of prompt
            token `score_from` + i; `token_log_probs` float32 [R], those of these tokens themselves.

        Raises:
            ValueError: the prompt leaves no room for one token within `max_model_len`.
        """
        if topk is None:
            return await super().generate(prompt_ids, sampling_params, request_id, **kwargs)
        room = self._room(prompt_ids)
        wanted: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": topk}
        if score_from is None:
            wanted = {**sampling_params, "max_tokens": min(sampling_params["max_tokens"], room), "logprobs": topk}
        adapter = AVERAGE if averaged else await self._students_adapter() if as_student else None
        output = await self._run(prompt_ids, wanted, request_id, adapter)
        return self._answer(output, topk=topk, score_from=score_from)

    def _answer(self, output: RequestOutput | None, *, topk: int, score_from: int | None) -> TokenOutput:
        """What vLLM said, in verl's form; None is a request that was refused."""
        if output is None or not output.outputs:
            return TokenOutput(token_ids=[], stop_reason="aborted", extra_fields={"finish_reason": "abort"})
        completion = output.outputs[0]
        logprobs = completion.logprobs if score_from is None else output.prompt_logprobs
        ids, log_probs, own = unpack_topk(logprobs, topk, first_position=score_from or 0)
        reason = completion.finish_reason
        found = {"topk_ids": ids, "topk_log_probs": log_probs, "token_log_probs": own}
        return TokenOutput(
            token_ids=list(completion.token_ids) if score_from is None else [],
            stop_reason="aborted" if reason == "abort" else "completed",
            extra_fields={"finish_reason": reason, **found, "global_steps": self.global_steps},
        )

    def _room(self, prompt_ids: list[int]) -> int:
        """Tokens that can be generated after a prompt."""
        room: int = self.config.max_model_len - len(prompt_ids)
        if room < 1:
            raise ValueError(
                f"a prompt of {len(prompt_ids)} tokens leaves no room in max_model_len={self.config.max_model_len}"
            )
        return room

    async def check_weights(self) -> None:
        """Ask for one distribution.

        Raises:
            RuntimeError: it is uniform: the weights never arrived here, or were lost while the server slept.
        """
        answer = await self.generate(PROBE, {}, uuid4().hex, topk=1, score_from=1)
        best = answer.extra_fields.get("topk_log_probs", np.zeros(0))
        uniform = -math.log(len(self.model_config.tokenizer))
        # The best of all is no better than the mean: even a model that was never trained is far from this.
        if best.size and np.allclose(best, uniform, rtol=0, atol=0.01):
            raise RuntimeError(
                f"the vLLM server of {self.model_config.path} answers uniformly, each log-prob being {uniform:.2f} = "
                "-ln V: its weights never arrived, or were lost while it slept. Start again from the last checkpoint "
                "with free_cache_engine=False and enable_sleep_mode=False under actor_rollout_ref.rollout (for a "
                "teacher, under distillation.teacher_models.teacher_model.inference)"
            )

    async def log_probs(self, token_ids: list[int], *, adapters: bool = True) -> np.ndarray:
        """Natural log-probs of all tokens but the first, float32 [len - 1]; empty where the request was refused.

        Args:
            token_ids: at least two.
            adapters: answer as the student does, with its adapters; else with the base weights.
        """
        adapter = await self._students_adapter() if adapters else None
        wanted = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 1}
        output = await self._run(token_ids, wanted, uuid4().hex, adapter)
        if output is None or output.prompt_logprobs is None:
            return np.empty(0, np.float32)
        # Of every position the token that stands there comes first, then the likeliest.
        values = np.asarray(output.prompt_logprobs.logprobs[output.prompt_logprobs.start_indices[1] :], np.float32)
        return values.reshape(-1, 2)[:, 0].copy()

    async def _students_adapter(self) -> LoRARequest | None:
        """How a request names the student's adapter; None where it has none, or none has arrived."""
        if not self.lora_as_adapter or VLLM_LORA_INT_ID not in await self.engine.list_loras():
            return None
        return LoRARequest(lora_name=VLLM_LORA_NAME, lora_int_id=VLLM_LORA_INT_ID, lora_path=VLLM_LORA_PATH)

    def _get_worker_extension_cls(self) -> str:
        if not self.lora_as_adapter:
            return super()._get_worker_extension_cls()
        return f"{AdapterExtension.__module__}.{AdapterExtension.__name__}"

    async def run_server(self, args: argparse.Namespace) -> None:
        """verl's, with room for as many adapters as asked for."""
        await super().run_server(self._with_room(args))

    async def run_headless(self, args: argparse.Namespace) -> None:
        """verl's, with room for as many adapters as asked for."""
        await super().run_headless(self._with_room(args))

    def _with_room(self, args: argparse.Namespace) -> argparse.Namespace:
        # verl sets 1, whatever its engine_kwargs say.
        args.max_loras = (self.config.engine_kwargs.get("vllm") or {}).get("max_loras", args.max_loras)
        return args

    async def _run(
        self, prompt_ids: list[int], wanted: dict[str, Any], request_id: str, adapter: LoRARequest | None
    ) -> Any:
        """The final output of one request that respects verl's gate around weight updates; None when it was refused."""
        if await self._park_until_admitted(request_id) is not None:
            return None
        sampling_params = SamplingParams(
            **wanted, flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        result = None
        try:
            prompt = TokensPrompt(prompt_token_ids=list(prompt_ids))
            requests = self.engine.generate(
                prompt=prompt, sampling_params=sampling_params, request_id=request_id, lora_request=adapter
            )
            async for output in requests:
                result = output
        finally:
            self._admitting -= 1
        return result


def unpack_topk(logprobs: FlatLogprobs, topk: int, first_position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays of the top-k of every position from `first_position` on, and log-probs of the tokens that stand there.

    vLLM puts the token that stands at a position first, then the K best: K + 1 entries a position (the first prompt
    token has none).

    Args:
        logprobs: vLLM's flat container of one request.
        topk: K.
        first_position: first position to return.

    Returns:
        ids int32 [R, K] and log-probs float32 [R, K], best first; log-probs float32 [R] of the tokens themselves.
    """
    if first_position >= len(logprobs):
        return np.empty((0, topk), np.int32), np.empty((0, topk), np.float32), np.empty(0, np.float32)
    start = logprobs.start_indices[first_position]
    ids = np.asarray(logprobs.token_ids[start:], np.int32).reshape(-1, topk + 1)
    values = np.asarray(logprobs.logprobs[start:], np.float32).reshape(-1, topk + 1)
    return ids[:, 1:].copy(), values[:, 1:].copy(), values[:, 0].copy()


class TopKReplica(vLLMReplica):
    """verl's replica; servers of teachers and students are `TopKServer`s, those of reward models verl's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.is_reward_model:
            self.server_class = ray.remote(TopKServer)


def register() -> None:
    """Make servers with `name=vllm` answer with top-k where asked; call it where verl creates its replicas."""
    RolloutReplicaRegistry.register("vllm", lambda: TopKReplica)
