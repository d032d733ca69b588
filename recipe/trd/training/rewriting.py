"""The rewrite of one rollout: asked for, asked for again, examined and graded."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from transformers import PreTrainedTokenizerBase
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from recipe.trd.config.axes import When
from recipe.trd.config.roles import RewriteConfig
from recipe.trd.rewrite import rejection, thoughts
from recipe.trd.rewrite.records import SampleRecord
from recipe.trd.rewrite.teacher import Rewrite, TeacherClient
from recipe.trd.rewrite.verdict import Verdict
from recipe.trd.training.training_sample import TrainingSample, accuracy, with_response
from verl_ext.runtime.errors import one_line

logger = logging.getLogger(__name__)

Grade = Callable[[list[AgentLoopOutput], dict[str, Any]], Awaitable[None]]
"""verl's: calls the reward function on a sample and puts the score there."""


class Rewriter:
    """Lives in an agent-loop worker; samples may be rewritten side by side."""

    def __init__(
        self,
        settings: RewriteConfig,
        *,
        teacher: TeacherClient,
        tokenizer: PreTrainedTokenizerBase,
        grade: Grade,
        seed: Callable[[Mapping[str, Any], str], int] | None = None,
    ) -> None:
        """Keep what is needed.

        Args:
            settings: `trd.rewrite`.
            teacher: is asked.
            tokenizer: the student's.
            grade: verl's grading.
            seed: of a sample's columns and a purpose, for requests that are to be the same again; None: any.
        """
        self.settings, self.teacher, self.tokenizer = settings, teacher, tokenizer
        self.grade, self.seed = grade, seed

    async def rewrite(
        self, y_o: TrainingSample, kwargs: dict[str, Any], record: SampleRecord, y_star: str | None
    ) -> tuple[Rewrite, TrainingSample | None]:
        """The rewrite of a rollout, and the sample that it gives, graded; None when it is rejected. Grades y_o, too.

        Args:
            y_o: the rollout.
            kwargs: its columns of the data.
            record: of the sample; what is found out is noted there.
            y_star: the reference solution.
        """
        if self.settings.when is When.ALWAYS:
            rewritten, _ = await asyncio.gather(
                self._ask_until_accepted(y_o, kwargs, record, y_star), self.grade([y_o], kwargs)
            )
            return rewritten
        await self.grade([y_o], kwargs)
        if (acc := accuracy(y_o)) is not None and acc >= 1:
            record.verdict = str(Verdict.NOT_NEEDED)
            return Rewrite(Verdict.NOT_NEEDED, None, [], None, time.time(), time.time()), None
        return await self._ask_until_accepted(y_o, kwargs, record, y_star)

    async def _ask_until_accepted(
        self, y_o: TrainingSample, kwargs: dict[str, Any], record: SampleRecord, y_star: str | None
    ) -> tuple[Rewrite, TrainingSample | None]:
        """Ask for a rewrite, and again while it is rejected and `trd.rewrite.retries` allows."""
        in_thought = thoughts.in_thought(self.tokenizer, y_o.prompt_ids)
        for attempt in range(1 + self.settings.retries):
            rewrite = await self.teacher.rewrite(
                kwargs["raw_prompt"],
                y_o.response_ids,
                y_star,
                in_thought=in_thought,
                seed=None if self.seed is None else self.seed(kwargs, f"y_r {attempt}"),
            )
            y_r = None
            if rewrite.verdict is Verdict.ACCEPTED:
                rewrite, y_r = await self._examined(rewrite, y_o, kwargs, record, y_star)
            _note_rewrite(record, rewrite, num_attempts=attempt + 1)
            if rewrite.verdict.is_final:
                break
        return rewrite, y_r

    async def _examined(
        self,
        rewrite: Rewrite,
        y_o: TrainingSample,
        kwargs: dict[str, Any],
        record: SampleRecord,
        y_star: str | None,
    ) -> tuple[Rewrite, TrainingSample | None]:
        """The rewrite with the verdict of `trd.rewrite.reject`, and its sample, graded; what costs most comes last."""
        reject, tokenizer = self.settings.reject, self.teacher.tokenizer
        shown = y_star if self.settings.with_reference else None
        known = rejection.gather(
            rewrite.y_r_ids,
            y_o_ids=y_o.response_ids,
            y_star_ids=None if shown is None else tokenizer.encode(shown, add_special_tokens=False),
            y_r_text=str(tokenizer.decode(rewrite.y_r_ids, skip_special_tokens=True)),
            problem=str(kwargs["raw_prompt"][-1]["content"]),
        )
        y_r, error = None, None
        verdict = rejection.first_reason(known, reject)
        if verdict is Verdict.ACCEPTED and reject.student_log_prob_below is not None:
            try:
                log_prob = await self.teacher.student_log_prob(y_o.prompt_ids, rewrite.y_r_ids)
                known = replace(known, student_log_prob=log_prob)
                verdict = rejection.first_reason(known, reject)
            except Exception as failure:
                # The network boundary, as for every other request: the sample falls back, the failure is counted.
                logger.exception("the student's server failed to score a rewrite")
                verdict, error = Verdict.FAILED, one_line(failure)
        if verdict is Verdict.ACCEPTED:
            y_r = with_response(y_o, rewrite.y_r_ids)
            # Graded before anything is attached: verl sends all extra fields to the reward worker.
            await self.grade([y_r], kwargs)
            known = replace(known, acc=accuracy(y_r), has_answer=_has_answer(y_r))
            verdict = rejection.first_reason(known, reject)
        record.evidence = asdict(known)
        accepted = y_r if verdict is Verdict.ACCEPTED else None
        return replace(rewrite, verdict=verdict, error=error), accepted


def _note_rewrite(record: SampleRecord, rewrite: Rewrite, *, num_attempts: int) -> None:
    record.verdict, record.error = str(rewrite.verdict), rewrite.error
    record.y_r_ids = rewrite.y_r_ids or None
    record.num_attempts, record.num_thought_tokens = num_attempts, rewrite.num_thought_tokens
    started = rewrite.started if record.rewrite_span is None else record.rewrite_span[0]
    record.rewrite_span = (started, rewrite.ended)
    if rewrite.prompt is not None:
        record.num_cut, record.num_cut_reference = rewrite.prompt.num_cut, rewrite.prompt.num_cut_reference


def _has_answer(output: AgentLoopOutput) -> bool | None:
    """Whether the reward function found an answer (`pred`); None where it does not say."""
    said: Mapping[str, Any] = output.extra_fields.get("reward_extra_info", {})
    return bool(str(said["pred"] or "").strip()) if "pred" in said else None
