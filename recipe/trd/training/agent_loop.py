"""From a rollout to a training sample, inside verl's agent-loop worker.

A sample is rewritten and scored as soon as its rollout is there, while other samples still roll out.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import ray
import torch
from transformers import GenerationConfig
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils import hf_tokenizer
from verl.utils.config import omega_conf_to_dataclass

from recipe.trd.config.axes import Fallback, Scorer, Trajectory
from recipe.trd.config.schema import TrdConfig
from recipe.trd.rewrite import alignment
from recipe.trd.rewrite.records import SampleRecord
from recipe.trd.rewrite.teacher import Rewrite, TeacherClient
from recipe.trd.rewrite.teacher_prompt import Message, TeacherPrompt, reference
from recipe.trd.rewrite.topk import TopKLogProbs
from recipe.trd.rewrite.verdict import Verdict
from recipe.trd.training import (
    determinism,
    loss,  # noqa: F401  verl looks its loss up in every process
)
from recipe.trd.training.rewriting import Rewriter
from recipe.trd.training.training_sample import (
    TrainingSample,
    accuracy,
    as_sample,
    detached_copy,
    mark_ungraded,
    reward_error,
    with_policy_sample,
)
from verl_ext.runtime.errors import one_line

logger = logging.getLogger(__name__)


def eos_token_ids(model_path: str, tokenizer: Any) -> list[int]:
    """Every id that ends a turn of this model: the tokenizer's and those of its generation config."""
    ids = {tokenizer.eos_token_id}
    try:
        declared = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # the file is optional
        declared = None
    ids.update(declared if isinstance(declared, list) else [declared])
    return sorted(ids - {None})


class TrdAgentLoopWorker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """verl's worker; between the rollout of a training sample and its grading it puts rewrite and teacher."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.setup_method()

    def setup_method(self) -> None:
        """Get ready for what `self.config.trd` asks of the teacher."""
        self.trd: TrdConfig = omega_conf_to_dataclass(self.config.trd)
        assert self.trd.teacher is not None, "methods without a teacher run through verl's own agent loop"
        assert self.trd.teacher_plan is not None, "there is a teacher"
        self.plan = self.trd.teacher_plan
        path = self.trd.teacher.engine.path
        if self.plan.is_self:
            path = self.config.actor_rollout_ref.model.path
        elif self.plan.has_server:
            path = self.config.distillation.teacher_models.teacher_model.model_path
        # The student's own has the chat template of the run (actor_rollout_ref.model.custom_chat_template).
        tokenizer = self.tokenizer
        if not self.plan.is_self:
            tokenizer = hf_tokenizer(path, trust_remote_code=self.config.actor_rollout_ref.model.trust_remote_code)
        self.teacher = TeacherClient(
            config=self.trd,
            client=next(iter(self.teacher_client.values())) if self.plan.has_server else None,
            student_client=self.llm_client,
            tokenizer=tokenizer,
            eos_token_ids=eos_token_ids(path, tokenizer),
            student_eos_token_id=self.tokenizer.eos_token_id,
            max_response_length=self.config.data.max_response_length,
            template_kwargs=self.config.data.get("apply_chat_template_kwargs") or {},
        )

    async def _run_agent_loop(
        self, sampling_params: dict[str, Any], *args: Any, session_id: int = 0, **kwargs: Any
    ) -> None:
        """verl's, with a seed of its own for every rollout where everything is to be the same again."""
        if determinism.is_wanted(self.config):
            seed = self._seed({**kwargs, "session_id": session_id}, "y_o")
            sampling_params = {**sampling_params, "seed": seed}
        await super()._run_agent_loop(sampling_params, *args, session_id=session_id, **kwargs)

    def _seed(self, kwargs: Mapping[str, Any], purpose: str) -> int:
        return determinism.request_seed(kwargs, seed=self.config.actor_rollout_ref.rollout.seed, purpose=purpose)

    async def _agent_loop_postprocess(
        self, output: AgentLoopOutput | list[AgentLoopOutput], validate: bool, **kwargs: Any
    ) -> None:
        if not validate:
            (y_o,) = output if isinstance(output, list) else [output]
            output = [*await self._training_samples(as_sample(y_o), kwargs)]
        await super()._agent_loop_postprocess(output, validate, **kwargs)

    _last_reward_info: Mapping[str, Any] = MappingProxyType({})
    """What the reward function said beside the score, of the last response that it graded."""

    async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict[str, Any]) -> None:
        """verl's; a reward function that raises, or takes too long, costs the response its score and nothing else."""
        try:
            await asyncio.wait_for(super()._compute_score(outputs, kwargs), self.trd.faults.reward_timeout_s)
        except Exception as error:
            # What a user's function does is the sample's fault, not the run's; the trainer prints the first cause.
            reason = one_line(error)
            if isinstance(error, TimeoutError):
                reason = f"no result within trd.faults.reward_timeout_s={self.trd.faults.reward_timeout_s:g}"
            logger.exception("the reward function failed on a response")
            mark_ungraded(outputs[-1], reason, like=self._last_reward_info)
        else:
            self._last_reward_info = outputs[-1].extra_fields.get("reward_extra_info", {})

    async def _compute_teacher_logprobs(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `_training_samples` has asked the teacher already."""

    async def _training_samples(self, y_o: TrainingSample, kwargs: dict[str, Any]) -> list[TrainingSample]:
        """The samples that a rollout gives: what the divergence is trained on, and y_o for a task reward beside y_r."""
        record = SampleRecord(y_o_ids=y_o.response_ids, rolled_out=time.time())
        y_star = reference(kwargs, self.trd.reference_key) if self.plan.needs_reference else None
        rewrite, y_r = None, None
        if self.trd.trajectory is Trajectory.Y_R:
            rewrite, y_r = await self._rewriter().rewrite(y_o, kwargs, record, y_star)
        else:
            await self._compute_score([y_o], kwargs)
        record.y_o_acc, record.reward_error = accuracy(y_o), reward_error(y_o)
        sample = y_o
        if y_r is not None:
            sample, record.y_r_acc, record.trained_on = y_r, accuracy(y_r), "y_r"
            record.reward_error = record.reward_error or reward_error(y_r)
        if self.trd.trains_both:
            sample = detached_copy(sample)
        await self._attach_teacher(sample, rewrite, record, raw_prompt=kwargs["raw_prompt"], y_star=y_star)
        sample.extra_fields["trd"] = record.as_dict()
        return [sample] if not self.trd.trains_both else with_policy_sample(sample, y_o)

    def _rewriter(self) -> Rewriter:
        return Rewriter(
            self.trd.rewrite,
            teacher=self.teacher,
            tokenizer=self.tokenizer,
            grade=self._compute_score,
            seed=self._seed if determinism.is_wanted(self.config) else None,
        )

    async def _attach_teacher(
        self,
        sample: TrainingSample,
        rewrite: Rewrite | None,
        record: SampleRecord,
        *,
        raw_prompt: Sequence[Message],
        y_star: str | None,
    ) -> None:
        """Give the sample the teacher's top-k, or the sequence that the teacher reads; without either it is masked."""
        num_prompt, num_response = len(sample.prompt_ids), len(sample.response_ids)
        rejected = rewrite is not None and rewrite.verdict is not Verdict.ACCEPTED
        usable = not (rejected and self.trd.rewrite.fallback is Fallback.MASK)
        prompt = self._prompt(rewrite, raw_prompt, y_o_ids=record.y_o_ids, y_star=y_star)
        if prompt is None:
            # The vanilla context always fits; it stands in so that there is something to be masked.
            vanilla = self.teacher.prompt(self.plan.vanilla, raw_prompt, y_o_ids=record.y_o_ids, y_star=None)
            assert vanilla is not None, "it has no template that it could be too long for"
            usable, prompt = False, vanilla
        record.teacher_prompt_ids = prompt.ids
        record.num_cut_reference = max(record.num_cut_reference, prompt.num_cut_reference)
        record.no_reference = self.plan.needs_reference and y_star is None
        assert self.trd.teacher is not None, "checked in setup_method"
        scorer = self.trd.teacher.scorer
        if scorer is Scorer.ENGINE:
            ids = [*prompt.ids, *self.teacher.in_teacher_tokens(sample.response_ids)]
            sample.extra_fields["teacher_input_ids"] = torch.tensor(ids, dtype=torch.int64)
        elif scorer.is_server:
            topk = await self._score(sample, rewrite, record, prompt) if usable else None
            usable = topk is not None
            aligned = alignment.at_student_positions(
                topk, num_prompt=num_prompt, num_response=num_response, top_k=self.trd.objective.top_k
            )
            sample.extra_fields["teacher_ids"], sample.extra_fields["teacher_logprobs"] = aligned
        if not usable:
            record.trained_on = "none"
            sample.response_mask = [0] * num_response

    async def _score(
        self, sample: TrainingSample, rewrite: Rewrite | None, record: SampleRecord, prompt: TeacherPrompt
    ) -> TopKLogProbs | None:
        """The teacher's top-k at every token of a sample; None when it could not be scored."""
        if rewrite is not None and rewrite.verdict is Verdict.ACCEPTED and rewrite.topk is not None:
            return rewrite.topk
        started = time.time()
        try:
            return await self.teacher.score(prompt.ids, sample.response_ids)
        except Exception as error:
            # The network boundary: the sample is masked and counted, the watchdog looks after the server.
            logger.exception("the teacher's server failed to score a sample")
            record.error = one_line(error)
            return None
        finally:
            record.score_span = (started, time.time())

    def _prompt(
        self, rewrite: Rewrite | None, raw_prompt: Sequence[Message], *, y_o_ids: Sequence[int], y_star: str | None
    ) -> TeacherPrompt | None:
        """What the teacher sees before the response; None where that cannot be had."""
        rejected = rewrite is not None and rewrite.verdict is not Verdict.ACCEPTED
        context = self.plan.fallback if rejected else self.plan.scored
        if rewrite is not None and not rejected and context == self.plan.refine:
            return rewrite.prompt
        return self.teacher.prompt(context, raw_prompt, y_o_ids=y_o_ids, y_star=y_star)


class TrdAgentLoopManager(AgentLoopManagerTQ):
    """Starts `TrdAgentLoopWorker`s. Named by `actor_rollout_ref.rollout.agent.agent_loop_manager_class`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(TrdAgentLoopWorker)
