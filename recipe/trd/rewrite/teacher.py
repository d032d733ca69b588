"""The rewrite stage: for one sample, as soon as its y_o is there, ask the teacher for y_r and for its log-probs."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
from transformers import PreTrainedTokenizerBase
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from recipe.trd.config.schema import TrdConfig
from recipe.trd.preflight.thinking import switched
from recipe.trd.rewrite import contexts
from recipe.trd.rewrite.contexts import Context, Message
from recipe.trd.rewrite.topk import TopKLogProbs
from recipe.trd.rewrite.verdict import Verdict, judge

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rewrite:
    """What came of one rewrite."""

    verdict: Verdict
    context: Context | None
    """The refine context, None when it did not fit."""
    y_r_ids: list[int]
    """What the teacher wrote, whatever the verdict; empty when it was not asked or did not answer."""
    topk: TopKLogProbs | None
    """The teacher's distribution at every token of an accepted y_r, when `trd.teacher.scorer=generation`."""
    started: float
    ended: float
    """Unix time, s."""
    error: str | None = None
    """What the server said when it failed."""


def one_line(error: Exception) -> str:
    """Type and first line of an exception; of one that Ray carried over, of its cause."""
    cause = getattr(error, "cause", None) or error
    text = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    return f"{type(cause).__name__}: {text}"


class TeacherClient:
    """One sample's requests to the teacher's server. Lives in an agent-loop worker; all methods may run side by
    side."""

    def __init__(
        self,
        *,
        config: TrdConfig,
        client: LLMServerClient | None,
        student_client: LLMServerClient | None = None,
        tokenizer: PreTrainedTokenizerBase,
        eos_token_ids: Sequence[int],
        student_eos_token_id: int,
        max_response_length: int,
        template_kwargs: Mapping[str, Any],
    ) -> None:
        self.config = config
        self.client, self.student_client = client, student_client
        self.tokenizer = tokenizer
        self.eos_token_ids = tuple(eos_token_ids)
        self.student_eos_token_id = student_eos_token_id
        self.max_response_length = max_response_length
        self.template_kwargs = dict(template_kwargs)

    def vanilla_context(self, raw_prompt: Sequence[Message]) -> Context:
        """Context x in the teacher's chat template."""
        template_kwargs = switched(self.template_kwargs, self.config.teacher_thinking)
        return contexts.vanilla(self.tokenizer, raw_prompt, template_kwargs)

    def privileged_context(self, raw_prompt: Sequence[Message], y_star: str) -> Context | None:
        """Context (x, y*), or None when it does not fit."""
        return contexts.templated(
            self.tokenizer,
            raw_prompt,
            template=self.config.teacher.template,
            y_o_ids=None,
            y_star=y_star,
            max_length=self.config.teacher.max_prompt_length,
            template_kwargs=switched(self.template_kwargs, self.config.teacher_thinking),
        )

    def refine_context(
        self, raw_prompt: Sequence[Message], y_o_ids: Sequence[int], y_star: str | None
    ) -> Context | None:
        """Context (x, y_o), with `trd.rewrite.with_reference` (x, y*, y_o), or None when it does not fit."""
        return contexts.templated(
            self.tokenizer,
            raw_prompt,
            template=self.config.rewrite.template,
            y_o_ids=y_o_ids,
            y_star=y_star if self.config.rewrite.with_reference else None,
            max_length=self.config.rewrite.max_prompt_length,
            template_kwargs=switched(self.template_kwargs, self.config.rewrite_thinking),
        )

    def in_teachers_tokens(self, ids: Sequence[int]) -> list[int]:
        """Student's ids as the teacher is to read them: with `trd.teacher.eos_remap` the ends of turn trade places."""
        return list(self._renamed(np.asarray(ids, dtype=np.int64)).tolist())

    def _renamed(self, ids: np.ndarray) -> np.ndarray:
        """Ids of any shape with both end-of-turn ids exchanged; its own inverse."""
        ours, theirs = self.student_eos_token_id, self.tokenizer.eos_token_id
        if not self.config.teacher.eos_remap or ours == theirs:
            return ids
        return np.where(ids == ours, theirs, np.where(ids == theirs, ours, ids)).astype(ids.dtype)

    async def _ask(self, weights: str, **request: Any) -> TokenOutput:
        """Send a request to the server that has these weights."""
        client = self.student_client if self.config.on_student(weights) else self.client
        assert client is not None, "whoever rewrites or scores has a server"
        if weights == "ema":
            request["averaged"] = True
        return await client.generate(request_id=uuid4().hex, **request)

    def _topk(self, output: TokenOutput) -> TopKLogProbs:
        return TopKLogProbs(self._renamed(output.extra_fields["topk_ids"]), output.extra_fields["topk_log_probs"])

    async def rewrite(
        self, raw_prompt: Sequence[Message], y_o_ids: Sequence[int], y_star: str | None = None
    ) -> Rewrite:
        """Ask for y_r under the refine context and judge it. A server that fails is a verdict, not an exception."""
        settings = self.config.rewrite
        started = time.time()
        if self.config.rewrite.with_reference and y_star is None:
            return Rewrite(Verdict.NO_REFERENCE, None, [], None, started, time.time())
        context = self.refine_context(raw_prompt, y_o_ids, y_star)
        if context is None:
            return Rewrite(Verdict.PROMPT_TOO_LONG, None, [], None, started, time.time())
        topk = self.config.objective.top_k if self.config.teacher.scorer == "generation" else None
        sampling_params = {
            "max_tokens": settings.max_response_length,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
        }
        try:
            # The top-k path alone reports why generation ended, and has no weights of the student as it is. What verl's
            # path does not say, the last token does.
            extra = {"topk": topk or 1} if settings.weights != "live" else {}
            output = await self._ask(settings.weights, prompt_ids=context.ids, sampling_params=sampling_params, **extra)
        except Exception as error:
            # The network boundary: the sample falls back, the failure is counted, the watchdog looks after the server.
            logger.exception("the teacher's server failed on a rewrite")
            return Rewrite(Verdict.FAILED, context, [], None, started, time.time(), error=one_line(error))
        y_r_ids = list(output.token_ids)
        verdict = judge(
            y_r_ids,
            finish_reason=output.extra_fields.get(
                "finish_reason", "abort" if output.stop_reason == "aborted" else None
            ),
            eos_token_ids=self.eos_token_ids,
            max_length=self.max_response_length,
        )
        rows = None
        if topk and verdict is Verdict.ACCEPTED:
            rows = self._topk(output)
        y_r_ids = self._renamed(np.asarray(y_r_ids, dtype=np.int64)).tolist()
        return Rewrite(verdict, context, y_r_ids, rows, started, time.time())

    async def score(self, context_ids: Sequence[int], response_ids: Sequence[int]) -> TopKLogProbs:
        """The teacher's top-k at every response token, by one forward pass over context and response (scorer
        `prefill`).

        Raises:
            Exception: whatever the server raised, or RuntimeError when it aborted.
        """
        output = await self._ask(
            self.config.teacher.weights,
            prompt_ids=[*context_ids, *self.in_teachers_tokens(response_ids)],
            sampling_params={},
            topk=self.config.objective.top_k,
            score_from=len(context_ids),
        )
        if output.stop_reason == "aborted":
            raise RuntimeError("the teacher's server aborted a scoring request")
        return self._topk(output)
