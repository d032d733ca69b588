"""The rewrite stage: for one sample, as soon as its y_o is there, ask the teacher for y_r and for its log-probs."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np
from transformers import PreTrainedTokenizerBase
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from recipe.trd.config.axes import Scorer, Thoughts
from recipe.trd.config.schema import TrdConfig
from recipe.trd.config.teacher_plan import Holder, TeacherContext
from recipe.trd.rewrite import teacher_prompt, thoughts
from recipe.trd.rewrite.chat_template import switched
from recipe.trd.rewrite.teacher_prompt import Message, TeacherPrompt
from recipe.trd.rewrite.topk import TopKLogProbs
from recipe.trd.rewrite.verdict import Verdict, judge
from verl_ext.runtime.errors import one_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rewrite:
    """What came of one rewrite."""

    verdict: Verdict
    prompt: TeacherPrompt | None
    """What y_r was written under; None when it did not fit."""
    y_r_ids: list[int]
    """What the teacher wrote, whatever the verdict, without thoughts where they are stripped; empty when it was not
    asked or did not answer."""
    topk: TopKLogProbs | None
    """The teacher's distribution at every token of an accepted y_r, when `trd.teacher.scorer=generation`."""
    started: float
    ended: float
    """Unix time, s."""
    error: str | None = None
    """What the server said when it failed."""
    num_thought_tokens: int = 0
    """Tokens of thoughts that were stripped."""


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
        assert config.teacher is not None, "there is a teacher"
        assert config.teacher_plan is not None, "there is a teacher"
        self.config, self.plan = config, config.teacher_plan
        self.client, self.student_client = client, student_client
        self.tokenizer = tokenizer
        self._scorer, self._remaps_eos = config.teacher.scorer, config.teacher.eos_remap
        self.eos_token_ids = tuple(eos_token_ids)
        self.student_eos_token_id = student_eos_token_id
        self.max_response_length = max_response_length
        self.template_kwargs = dict(template_kwargs)

    def prompt(
        self,
        context: TeacherContext,
        raw_prompt: Sequence[Message],
        *,
        y_o_ids: Sequence[int],
        y_star: str | None,
    ) -> TeacherPrompt | None:
        """A context in the teacher's chat template, None when it does not fit or needs a reference that is missing.

        Args:
            context: which one.
            raw_prompt: the student's conversation.
            y_o_ids: the rollout; used where the context shows it.
            y_star: the reference solution; used where the context shows it.
        """
        template_kwargs = switched(self.template_kwargs, context.thinking)
        if context.template is None:
            return teacher_prompt.vanilla(self.tokenizer, raw_prompt, template_kwargs)
        if context.shows_reference and y_star is None:
            return None
        return teacher_prompt.templated(
            self.tokenizer,
            raw_prompt,
            template=context.template,
            y_o_ids=y_o_ids if context.shows_y_o else None,
            y_star=y_star if context.shows_reference else None,
            max_length=context.max_prompt_length,
            template_kwargs=template_kwargs,
        )

    def in_teacher_tokens(self, ids: Sequence[int]) -> list[int]:
        """Student's ids as the teacher is to read them: with `trd.teacher.eos_remap` the ends of turn trade places."""
        return list(self._renamed(np.asarray(ids, dtype=np.int64)).tolist())

    def _renamed(self, ids: np.ndarray) -> np.ndarray:
        """Ids of any shape with both end-of-turn ids exchanged; its own inverse."""
        student_eos, teacher_eos = self.student_eos_token_id, self.tokenizer.eos_token_id
        if not self._remaps_eos or student_eos == teacher_eos:
            return ids
        return np.where(ids == student_eos, teacher_eos, np.where(ids == teacher_eos, student_eos, ids)).astype(
            ids.dtype
        )

    async def _ask(self, holder: Holder | None, **request: Any) -> TokenOutput:
        """Send a request to the server that has the weights."""
        client = self.client if holder is Holder.OWN else self.student_client
        assert client is not None, "whoever rewrites or scores has a server"
        if holder is Holder.AVERAGE:
            request["averaged"] = True
        return await client.generate(request_id=uuid4().hex, **request)

    def _topk(self, output: TokenOutput) -> TopKLogProbs:
        return TopKLogProbs(self._renamed(output.extra_fields["topk_ids"]), output.extra_fields["topk_log_probs"])

    async def rewrite(
        self,
        raw_prompt: Sequence[Message],
        y_o_ids: Sequence[int],
        y_star: str | None = None,
        *,
        in_thought: bool = False,
        seed: int | None = None,
    ) -> Rewrite:
        """Ask for y_r under the refine context and judge its form. A server that fails is a verdict, not an exception.

        Args:
            raw_prompt: the student's conversation.
            y_o_ids: the rollout.
            y_star: the reference solution.
            in_thought: whether the student's prompt ends inside a thought, which a y_r without thoughts has to close.
            seed: of the request; None: the server's own random numbers.
        """
        refine = self.plan.refine
        assert refine is not None, "the method rewrites"
        started = time.time()
        if refine.shows_reference and y_star is None:
            return Rewrite(Verdict.NO_REFERENCE, None, [], None, started, time.time())
        prompt = self.prompt(refine, raw_prompt, y_o_ids=y_o_ids, y_star=y_star)
        if prompt is None:
            return Rewrite(Verdict.PROMPT_TOO_LONG, None, [], None, started, time.time())
        topk = self.config.objective.top_k if self._scorer is Scorer.GENERATION else None
        try:
            # Only the top-k path reports why generation ended; on verl's own path the last token tells.
            extra: dict[str, Any] = {}
            if self.plan.author is not None and self.plan.author.sends_top_k:
                extra["topk"] = topk or 1
            output = await self._ask(
                self.plan.author, prompt_ids=prompt.ids, sampling_params=self._sampling(seed), **extra
            )
        except Exception as error:
            # The network boundary: the sample falls back, the failure is counted, the watchdog looks after the server.
            logger.exception("the teacher's server failed on a rewrite")
            return Rewrite(Verdict.FAILED, prompt, [], None, started, time.time(), error=one_line(error))
        verdict, num_thought_tokens = self._judge(output, in_thought=in_thought)
        scored = None
        if topk and verdict is Verdict.ACCEPTED:
            rows = self._topk(output)
            scored = rows.from_token(num_thought_tokens)
        y_r_ids = self._renamed(np.asarray(output.token_ids[num_thought_tokens:], dtype=np.int64)).tolist()
        return Rewrite(verdict, prompt, y_r_ids, scored, started, time.time(), num_thought_tokens=num_thought_tokens)

    def _sampling(self, seed: int | None) -> dict[str, Any]:
        settings = self.config.rewrite
        return {
            "max_tokens": settings.max_response_length,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            **({} if seed is None else {"seed": seed}),
        }

    def _judge(self, output: TokenOutput, *, in_thought: bool) -> tuple[Verdict, int]:
        """Verdict on the form of what the server sent, and the number of thought tokens that it begins with."""
        settings, ids = self.config.rewrite, list(output.token_ids)
        aborted = "abort" if output.stop_reason == "aborted" else None
        judged = partial(
            judge,
            finish_reason=output.extra_fields.get("finish_reason", aborted),
            eos_token_ids=self.eos_token_ids,
            allow_unfinished=not settings.reject.unfinished,
        )
        verdict = judged(ids, max_length=len(ids))
        if verdict is Verdict.ACCEPTED and settings.thoughts is Thoughts.REJECT:
            has_thoughts = thoughts.has_thoughts(self.tokenizer, ids)
            return (Verdict.THOUGHTS, 0) if has_thoughts else (judged(ids, max_length=self.max_response_length), 0)
        num_thought_tokens: int | None = 0
        if verdict is Verdict.ACCEPTED and settings.thoughts is Thoughts.STRIP:
            num_thought_tokens = thoughts.num_thought_tokens(self.tokenizer, ids, keep_close=in_thought)
        if num_thought_tokens is None:
            return Verdict.THOUGHTS, 0
        return judged(ids[num_thought_tokens:], max_length=self.max_response_length), num_thought_tokens

    async def score(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> TopKLogProbs:
        """The teacher's top-k at every response token, by one forward pass over context and response (scorer
        `prefill`).

        Raises:
            Exception: whatever the server raised, or RuntimeError when it aborted.
        """
        output = await self._ask(
            self.plan.scoring_server,
            prompt_ids=[*prompt_ids, *self.in_teacher_tokens(response_ids)],
            sampling_params={},
            topk=self.config.objective.top_k,
            score_from=len(prompt_ids),
        )
        if output.stop_reason == "aborted":
            raise RuntimeError("the teacher's server aborted a scoring request")
        return self._topk(output)

    async def student_log_prob(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> float:
        """Mean log-prob of a response under the student as it is now, nats a token; on the student's server.

        Raises:
            Exception: whatever the server raised, or RuntimeError when it aborted.
        """
        output = await self._ask(
            Holder.STUDENT,
            prompt_ids=[*prompt_ids, *response_ids],
            sampling_params={},
            topk=1,
            score_from=len(prompt_ids),
            as_student=True,
        )
        if output.stop_reason == "aborted":
            raise RuntimeError("the student's server aborted a scoring request")
        return float(np.mean(output.extra_fields["token_log_probs"]))
