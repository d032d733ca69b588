"""verl's synchronous trainer with the objective of this recipe; registered with verl as `trd`."""

from collections.abc import Mapping
from concurrent.futures import Future
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import ray
import transfer_queue as tq
from omegaconf import OmegaConf, open_dict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.workers.rollout.llm_server import LLMServerClient

from recipe.trd.reports import rollout_dump
from recipe.trd.reports.reporting import Reporting, stage
from recipe.trd.rewrite import records
from recipe.trd.training import (
    advantage,  # noqa: F401  advantage registers itself
    determinism,
    first_look,
)
from recipe.trd.training.checkpointing import SafeCheckpoints
from recipe.trd.training.server_gap import ServerWatch
from recipe.trd.training.shared_gpus import SharedGpus
from recipe.trd.training.worker import PROBE_TOKENS, TrdWorker
from verl_ext.engine.probe import Probe
from verl_ext.runtime.console import show
from verl_ext.server.patient_client import PatientClient, is_gone


@register_trainer("upstream")
class UpstreamTrainer(Reporting, SafeCheckpoints, SharedGpus, PPOTrainerSync):
    """verl's own trainer, reported on: `grpo` and `opd`."""


@register_trainer("trd")
class TrdTrainer(Reporting, SafeCheckpoints, SharedGpus, PPOTrainerSync):
    """Every method whose loss is `recipe.trd.training.loss`."""

    def _init_resource_pool_mgr(self) -> None:
        # verl hands its workers this node and no other.
        with open_dict(self.config.actor_rollout_ref):
            self.config.actor_rollout_ref.trd = OmegaConf.to_container(self.config.trd, resolve=True)
        super()._init_resource_pool_mgr()
        for role in (Role.ActorRollout, Role.ActorRolloutRef):
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(TrdWorker)

    def get_llm_client(self) -> PatientClient:
        """verl's, with patience."""
        return PatientClient.of(super().get_llm_client())

    def get_teacher_client(self) -> dict[str, LLMServerClient] | None:
        """The same for teachers."""
        clients = super().get_teacher_client()
        return None if clients is None else {key: PatientClient.of(client) for key, client in clients.items()}

    _watched: Mapping[str, float] = MappingProxyType({})
    """What was found when servers and trainer were compared last."""

    def on_init_end(self) -> None:
        """Send weights to the servers, and see that every server has some."""
        super().on_init_end()
        self._check_servers()
        self._look_first()

    def _look_first(self) -> None:
        """Compare everyone with everyone on tokens of the first training sample (first_look.py)."""
        messages = [dict(message) for message in self.train_dataset[0]["raw_prompt"]]
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        token_ids = [int(token) for token in ids[-PROBE_TOKENS:]]
        found = self.actor_rollout_wg.look_first(token_ids)[0]
        said = []
        if found is not None:
            first_look.judge(found)
            if found.self_divergence is not None:
                said.append(f"the student's divergence from itself is {found.self_divergence:.1g}")
            gaps = self._compare_students(found.probe)
            said += [f"its server is {gap:.2g} nats off" for name, gap in gaps.items() if name.endswith("/mean")]
        _, teachers = (servers_that_score(group) for group in server_groups(self))
        first, second = (
            answers_of_living([server.log_probs.remote(token_ids, adapters=False) for server in teachers])
            for _ in range(2)
        )
        gap = first_look.compare_answers(first, second, stop_above=self.config.trd.server_gap_stop)
        said += [] if gap is None else [f"the teacher's differs from itself by {gap:.1g}"]
        stage(f"looked first: {', '.join(said) or 'nothing to compare'}")

    def _compare_students(self, probe: Probe) -> dict[str, float]:
        students, _ = (servers_that_score(group) for group in server_groups(self))
        has_adapters = probe.base_log_probs is not None
        answers, base_answers = (
            answers_of_living([server.log_probs.remote(probe.token_ids, adapters=adapters) for server in servers])
            for servers, adapters in ((students, True), (students if has_adapters else [], False))
        )
        return self._watch.student(probe, answers, base_answers)

    def on_step_end(self) -> None:
        """The same, after an update."""
        super().on_step_end()
        self._check_servers()
        self._watched = self._watch_servers()

    def _check_servers(self) -> None:
        """A server that lost its weights teaches noise, of which no loss tells."""
        servers = [replica.server_handle for replica in replicas(self)]
        # Those of other engines than vLLM are verl's own and know no such question.
        answers_of_living([server.check_weights.remote() for server in servers if hasattr(server, "check_weights")])

    def _watch_servers(self) -> dict[str, float]:
        """Compare servers with the trainer, and the teacher's with its first answer."""
        probe = self.actor_rollout_wg.last_probe()[0]
        if probe is None:
            return {}
        watch, (_, teachers) = self._watch, (servers_that_score(group) for group in server_groups(self))
        watch.teacher_ids = watch.teacher_ids or probe.token_ids
        taught = answers_of_living([server.log_probs.remote(watch.teacher_ids, adapters=False) for server in teachers])
        return self._compare_students(probe) | watch.teacher(taught)

    @cached_property
    def _watch(self) -> ServerWatch:
        return ServerWatch(warn_above=self.config.trd.server_gap_warn, stop_above=self.config.trd.server_gap_stop)

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> KVBatchMeta:
        """verl's, from an order that is the same in every run where everything is to be."""
        if determinism.is_wanted(self.config):
            data = tq.kv_batch_get(
                keys=batch.keys, partition_id=batch.partition_id, select_fields=["prompts", "responses"]
            )
            batch.reorder(
                determinism.order_by_content(
                    *([ids.tolist() for ids in data[name].unbind()] for name in ("prompts", "responses"))
                )
            )
        return super()._balance_batch(batch, metrics, *args, **kwargs)

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        # The policy that sampled is the current one in the first update of a batch: a whole forward pass saved.
        if not self._needs_old_log_probs():
            return batch
        return super()._compute_old_log_prob(batch, metrics)

    def _needs_old_log_probs(self) -> bool:
        """Whether a ratio to the policy that sampled can differ from 1."""
        trd, actor = self.config.trd.objective, self.config.actor_rollout_ref.actor
        has_ratio = trd.task_reward_coef > 0 or any(
            term.divergence == "sampled_kl" and term.estimator == "k1" for term in (trd, trd.plus)
        )
        num_updates = actor.ppo_epochs * self.config.data.train_batch_size / actor.ppo_mini_batch_size
        return has_ratio and num_updates > 1

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict[str, Any], timing_raw: dict[str, float], global_steps: int, epoch: int
    ) -> None:
        self._records = self._fetch_records(batch)
        self._refuse_a_step_without_teacher()
        self._tell_of_rewards()
        expected = self.config.data.train_batch_size * self.config.actor_rollout_ref.rollout.n
        metrics["trd/lost_frac"] = max(0.0, 1 - len(self._records) / expected)
        metrics.update(records.step_metrics(self._records))
        metrics.update(self._watched)
        if not self._has_taught and self.config.trd.objective.divergence != "none":
            first_look.refuse_zero_gradient(metrics)
        self._has_taught = True
        super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)

    _has_taught = False

    def _refuse_a_step_without_teacher(self) -> None:
        """A teacher that fails on every sample would leave steps that train nothing, one after the other."""
        errors = [record["error"] for record in self._records]
        if errors and all(errors):
            raise RuntimeError(
                f"the teacher's server failed on all {len(errors)} samples of step {self.global_steps}: {errors[0]}"
            )

    def _tell_of_rewards(self) -> None:
        """A reward function that fails on some responses is said; one that fails on all of them ends the run."""
        errors = [record["reward_error"] for record in self._records if record["reward_error"]]
        if not errors:
            return
        text = f"the reward function failed on {len(errors)} of {len(self._records)} samples of step"
        if len(errors) == len(self._records):
            raise RuntimeError(f"{text} {self.global_steps}: {errors[0]}")
        show(f"WARNING {text} {self.global_steps}: {errors[0]}")

    def _fetch_records(self, batch: KVBatchMeta) -> list[dict[str, Any]]:
        """Records of the step's samples, padding rows left out, each with its key, prompt, reward and truth."""
        data = tq.kv_batch_get(
            keys=batch.keys,
            partition_id=batch.partition_id,
            select_fields=["extra_fields", "prompts", "rm_scores", "reward_model"],
        )
        columns = zip(
            batch.keys,
            batch.tags,
            _as_list(data["extra_fields"]),
            data["prompts"].unbind(),
            data["rm_scores"].unbind(),
            _as_list(data["reward_model"]),
            strict=True,
        )
        return [
            {
                **extra["trd"],
                "uid": key,
                "prompt_ids": prompt.tolist(),
                "reward": float(scores.sum()),
                "ground_truth": truth.get("ground_truth"),
            }
            for key, tag, extra, prompt, scores, truth in columns
            # Rows without a record are the y_o beside a y_r, which a task reward is trained on.
            if not tag.get("is_padding", False) and "trd" in extra
        ]

    def _log_rollout_data(self, batch: KVBatchMeta, timing_raw: dict[str, float], rollout_data_dir: str) -> None:
        step = self.global_steps
        samples = rollout_dump.readable_samples(self._records, tokenizer=self.tokenizer, step=step)
        written = self._dump_executor.submit(rollout_dump.write, samples, folder=rollout_data_dir, step=step)
        written.add_done_callback(_report_dump)


def replicas(trainer: Any) -> list[Any]:
    """verl's replicas of all servers that are up, the student's and the teacher's; none before they are started.

    Args:
        trainer: verl's, at any moment of its life, or None.
    """
    return [replica for group in server_groups(trainer) for replica in group]


def server_groups(trainer: Any) -> tuple[list[Any], list[Any]]:
    """Replicas of the student's servers, and of the teacher's."""
    teachers = getattr(getattr(trainer, "teacher_model_manager", None), "teacher_model_managers", {})
    student = list(getattr(getattr(trainer, "llm_server_manager", None), "rollout_replicas", []))
    return student, [replica for manager in teachers.values() for replica in getattr(manager, "rollout_replicas", [])]


def answers_of_living(requests: list[ray.ObjectRef]) -> list[Any]:
    """Answers of servers; an empty array in the place of one that is gone, which is the watchdog's business."""
    answers = []
    for request in requests:
        try:
            answers.append(ray.get(request))
        except Exception as error:
            if not is_gone(error):
                raise
            answers.append(np.empty(0, np.float32))
    return answers


def servers_that_score(replicas: list[Any]) -> list[Any]:
    """Handles of those servers that can be asked for log-probs; those of other engines than vLLM are verl's own."""
    return [replica.server_handle for replica in replicas if hasattr(replica.server_handle, "log_probs")]


def _report_dump(written: Future) -> None:
    """A dump that cannot be written, on a full disk say, is no reason to lose the run: it is said and left out."""
    if error := written.exception():
        show(f"WARNING the samples of a step could not be written: {error}")


def _as_list(column: Any) -> list[Any]:
    """A column of Python objects as a list; TransferQueue hands it out as a list or as a NonTensorStack."""
    return column.tolist() if hasattr(column, "tolist") else list(column)
