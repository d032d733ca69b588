"""verl's synchronous trainer with the objective of this recipe; registered with verl as `trd`."""

from concurrent.futures import Future
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

    def on_init_end(self) -> None:
        """Send weights to the servers, and see that every server has some."""
        super().on_init_end()
        self._check_servers()

    def on_step_end(self) -> None:
        """The same, after an update."""
        super().on_step_end()
        self._check_servers()

    def _check_servers(self) -> None:
        """A server that lost its weights teaches noise, of which no loss tells."""
        servers = [replica.server_handle for replica in replicas(self)]
        # Those of other engines than vLLM are verl's own and know no such question.
        ray.get([server.check_weights.remote() for server in servers if hasattr(server, "check_weights")])

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
    teachers = getattr(getattr(trainer, "teacher_model_manager", None), "teacher_model_managers", {})
    managers = [getattr(trainer, "llm_server_manager", None), *teachers.values()]
    return [replica for manager in managers for replica in getattr(manager, "rollout_replicas", [])]


def _report_dump(written: Future) -> None:
    """A dump that cannot be written, on a full disk say, is no reason to lose the run: it is said and left out."""
    if error := written.exception():
        show(f"WARNING the samples of a step could not be written: {error}")


def _as_list(column: Any) -> list[Any]:
    """A column of Python objects as a list; TransferQueue hands it out as a list or as a NonTensorStack."""
    return column.tolist() if hasattr(column, "tolist") else list(column)
