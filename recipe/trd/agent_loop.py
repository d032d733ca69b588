"""The rewrite stage inside verl's agent-loop worker: a sample's y_r is under way while other samples still roll out."""

import asyncio
import logging
import time
from typing import Any

import ray
from transformers import GenerationConfig
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils import hf_tokenizer
from verl.utils.config import omega_conf_to_dataclass

from recipe.trd import alignment, objective  # noqa: F401  verl looks its loss up in every process
from recipe.trd.gates import Verdict
from recipe.trd.records import SampleRecord
from recipe.trd.rewrite import Rewrite, Teacher, TopK
from recipe.trd.schema import TrdConfig

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
    """verl's worker; between the rollout of a training sample and its scoring it puts the rewrite."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.trd: TrdConfig = omega_conf_to_dataclass(self.config.trd)
        (key, client), *_ = self.teacher_client.items()
        path = self.teacher_server_manager.teacher_model_configs[key].model_path
        tokenizer = hf_tokenizer(path, trust_remote_code=self.config.actor_rollout_ref.model.trust_remote_code)
        self.teacher = Teacher(
            config=self.trd,
            client=client,
            tokenizer=tokenizer,
            eos_token_ids=eos_token_ids(path, tokenizer),
            max_response_length=self.config.data.max_response_length,
            template_kwargs=self.config.data.get("apply_chat_template_kwargs") or {},
        )

    async def _agent_loop_postprocess(
        self, output: AgentLoopOutput | list[AgentLoopOutput], validate: bool, **kwargs: Any
    ) -> None:
        if not validate:
            (y_o,) = output if isinstance(output, list) else [output]
            output = await self._training_sample(y_o, kwargs)
        await super()._agent_loop_postprocess(output, validate, **kwargs)

    async def _training_sample(self, y_o: AgentLoopOutput, kwargs: dict[str, Any]) -> AgentLoopOutput:
        """Turn a rollout into the sample that is trained on: y_r, or y_o where the rewrite was rejected."""
        rolled_out = time.time()
        rewrite, _ = await asyncio.gather(
            self.teacher.rewrite(kwargs["raw_prompt"], y_o.response_ids), self._compute_score([y_o], kwargs)
        )
        accepted = rewrite.verdict is Verdict.ACCEPTED
        record = SampleRecord(
            verdict=str(rewrite.verdict),
            trained_on="y_r" if accepted else "y_o",
            y_o_ids=y_o.response_ids,
            y_r_ids=rewrite.y_r_ids or None,
            y_o_acc=accuracy(y_o),
            num_cut=rewrite.context.num_cut if rewrite.context else 0,
            rolled_out=rolled_out,
            rewrite_span=(rewrite.started, rewrite.ended),
            teacher_prompt_ids=rewrite.context.ids if rewrite.context else None,
        )
        sample = self._rewritten(y_o, rewrite) if accepted else y_o
        # Graded before the rewrite is attached: verl sends all extra fields to the reward worker.
        await self._compute_score([sample], kwargs)
        sample.extra_fields["trd"] = record
        sample.extra_fields["rewrite"] = rewrite
        return sample

    def _rewritten(self, y_o: AgentLoopOutput, rewrite: Rewrite) -> AgentLoopOutput:
        """y_r in the place of y_o: same prompt, same weight version, a reward of its own."""
        fields = {name: value for name, value in y_o.extra_fields.items() if name != "reward_extra_info"}
        return AgentLoopOutput(
            prompt_ids=y_o.prompt_ids,
            response_ids=rewrite.y_r_ids,
            response_mask=[1] * len(rewrite.y_r_ids),
            num_turns=y_o.num_turns,
            metrics=y_o.metrics,
            extra_fields=fields,
        )

    async def _compute_teacher_logprobs(
        self,
        output: AgentLoopOutput,
        prompt_ids: list[int],
        response_ids: list[int],
        validate: bool,
        sample_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if validate:
            return
        rewrite: Rewrite = output.extra_fields.pop("rewrite")
        record: SampleRecord = output.extra_fields["trd"]
        num_prompt, num_response = len(prompt_ids), len(response_ids)
        topk = await self._score(rewrite, record, response_ids, sample_kwargs or {})
        if topk is None:
            record.trained_on = "none"
            output.response_mask = [0] * num_response
            rows = alignment.no_rows(num_prompt=num_prompt, num_response=num_response, top_k=self.trd.objective.top_k)
        else:
            rows = alignment.to_student_rows(topk, num_prompt=num_prompt, num_response=num_response)
        output.extra_fields["teacher_ids"], output.extra_fields["teacher_logprobs"] = rows
        record.y_r_acc = accuracy(output) if rewrite.verdict is Verdict.ACCEPTED else None
        output.extra_fields["trd"] = record.as_dict()

    async def _score(
        self, rewrite: Rewrite, record: SampleRecord, response_ids: list[int], kwargs: dict[str, Any]
    ) -> TopK | None:
        """The teacher's rows of the sample; None when it is to be masked or could not be scored."""
        accepted = rewrite.verdict is Verdict.ACCEPTED
        if accepted and rewrite.topk is not None:
            return rewrite.topk
        if not accepted and self.trd.rewrite.fallback == "mask":
            return None
        context = rewrite.context if accepted and self.trd.teacher.context == "refine" else None
        if context is None:
            context = self.teacher.vanilla_context(kwargs["raw_prompt"])
        started = time.time()
        try:
            return await self.teacher.score(context.ids, response_ids)
        except Exception:
            # The network boundary: the sample is masked and counted, the watchdog looks after the server.
            logger.exception("the teacher's server failed to score a sample")
            return None
        finally:
            record.score_span = (started, time.time())
            record.teacher_prompt_ids = context.ids


def accuracy(output: AgentLoopOutput) -> float | None:
    """`acc` of the reward function, else its score; None when nothing was scored."""
    if output.reward_score is None:
        return None
    return float(output.extra_fields.get("reward_extra_info", {}).get("acc", output.reward_score))


class TrdAgentLoopManager(AgentLoopManagerTQ):
    """Starts `TrdAgentLoopWorker`s. Named by `actor_rollout_ref.rollout.agent.agent_loop_manager_class`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(TrdAgentLoopWorker)
