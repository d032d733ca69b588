"""verl's synchronous trainer with the objective of this recipe; registered with verl as `trd`."""

from collections.abc import Mapping
from concurrent.futures import Future
from functools import cached_property
from types import MappingProxyType
from typing import Any

import ray
import transfer_queue as tq
from omegaconf import OmegaConf, open_dict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from recipe.trd.reports import rollout_dump
from recipe.trd.reports.reporting import Reporting
from recipe.trd.rewrite import records
from recipe.trd.training import advantage  # noqa: F401  advantage registers itself
from recipe.trd.training.server_gap import ServerWatch
from recipe.trd.training.worker import TrdWorker
from verl_ext.runtime.console import show


@register_trainer("upstream")
class UpstreamTrainer(Reporting, PPOTrainerSync):
    """verl's own trainer, reported on: `grpo` and `opd`."""


@register_trainer("trd")
class TrdTrainer(Reporting, PPOTrainerSync):
    """Every method whose loss is `recipe.trd.training.loss`."""

    def _init_resource_pool_mgr(self) -> None:
        # verl hands its workers this node and no other.
        with open_dict(self.config.actor_rollout_ref):
            self.config.actor_rollout_ref.trd = OmegaConf.to_container(self.config.trd, resolve=True)
        super()._init_resource_pool_mgr()
        for role in (Role.ActorRollout, Role.ActorRolloutRef):
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(TrdWorker)

    _watched: Mapping[str, float] = MappingProxyType({})
    """What was found when servers and trainer were compared last."""

    def on_init_end(self) -> None:
        """Send weights to the servers, and see that every server has some."""
        super().on_init_end()
        self._check_servers()

    def on_step_end(self) -> None:
        """The same, after an update."""
        super().on_step_end()
        self._check_servers()
        self._watched = self._watch_servers()

    def _check_servers(self) -> None:
        """A server that lost its weights teaches noise, of which no loss tells."""
        servers = [replica.server_handle for replica in replicas(self)]
        # Those of other engines than vLLM are verl's own and know no such question.
        ray.get([server.check_weights.remote() for server in servers if hasattr(server, "check_weights")])

    def _watch_servers(self) -> dict[str, float]:
        """Compare servers with the trainer, and the teacher's with its first answer."""
        probe = self.actor_rollout_wg.last_probe()[0]
        if probe is None:
            return {}
        watch, (students, teachers) = self._watch, (servers_that_score(group) for group in server_groups(self))
        watch.teacher_ids = watch.teacher_ids or probe.token_ids
        has_adapters = probe.base_log_probs is not None
        answers, base_answers, taught = (
            ray.get([server.log_probs.remote(ids, adapters=adapters) for server in servers])
            for servers, ids, adapters in (
                (students, probe.token_ids, True),
                (students if has_adapters else [], probe.token_ids, False),
                (teachers, watch.teacher_ids, False),
            )
        )
        return watch.student(probe, answers, base_answers) | watch.teacher(taught)

    @cached_property
    def _watch(self) -> ServerWatch:
        return ServerWatch(warn_above=self.config.trd.server_gap_warn, stop_above=self.config.trd.server_gap_stop)

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
        metrics.update(records.step_metrics(self._records))
        metrics.update(self._watched)
        super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)

    def _refuse_a_step_without_teacher(self) -> None:
        """A teacher that fails on every sample would leave steps that train nothing, one after the other."""
        errors = [record["error"] for record in self._records]
        if errors and all(errors):
            raise RuntimeError(
                f"the teacher's server failed on all {len(errors)} samples of step {self.global_steps}: {errors[0]}"
            )

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
