"""Every method of configs/method in one run: `python -m method_tour CASES.json RUN_DIR`.

Ray, both vLLM servers, TransferQueue and the training worker start once. A step of this run is a method: it takes the
method up in all workers, samples, rewrites and scores as the method says, and then updates three times on that one
batch, teacher and data being fixed. Afterwards the student's first weights come back. The metrics of the three updates
are logged as `tour/<metric>/<0, 1, 2>`.

CASES.json: {name: overrides}; the servers are those of the case `trd_opd`. A module, because Ray's workers import it
too (PYTHONPATH).
"""

import json
import sys
from pathlib import Path

import ray
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.trainer.main_ppo import run_ppo
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.utils import tensordict_utils as tu

from recipe.trd.main import CONFIG_DIR
from recipe.trd.preflight import checks
from recipe.trd.training import loss
from recipe.trd.training.agent_loop import TrdAgentLoopManager, TrdAgentLoopWorker
from recipe.trd.training.task_runner import TrdTaskRunner
from recipe.trd.training.trainer import TrdTrainer
from recipe.trd.training.worker import TrdWorker
from verl_ext.divergence import Head

NUM_UPDATES = 3


class TourAgentLoopWorker(TrdAgentLoopWorker):
    def take_up(self, trd: dict, num_rollouts: int) -> None:
        with open_dict(self.config):
            self.config.trd = OmegaConf.create(trd)
            self.config.actor_rollout_ref.rollout.n = num_rollouts
        self.setup_method()


class TourAgentLoopManager(TrdAgentLoopManager):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(TourAgentLoopWorker)


class TourWorker(TrdWorker):
    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def take_up(self, trd: dict, loss_agg_mode: str) -> None:
        with open_dict(self.config):
            self.config.trd = OmegaConf.create(trd)
        self.loss_fn.keywords["config"].__dict__["loss_agg_mode"] = loss_agg_mode
        self.setup_method()
        self.first_seen: dict[str, torch.Tensor] = {}
        self.averaged = self._trained()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def start_again(self, folder: str) -> None:
        """From a checkpoint of before there was an average."""
        self.set_average(None)
        self.load_checkpoint(folder)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def update_actor(self, data: TensorDict) -> TensorDict:
        """Measures besides how far both sides' log-probs are from those of the first update, and the average's error.

        The average is recomputed here from the weights after every update.
        """
        seen: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}
        ours = loss.linear_divergence

        def watched(*, student, teacher, **rest):
            for side, head in (("student", student), ("teacher", teacher)):
                if isinstance(head, Head):
                    logits = head.hidden.detach().float() @ head.weight.detach().float().t()
                    seen[side].append(logits.log_softmax(-1))
            return ours(student=student, teacher=teacher, **rest)

        loss.linear_divergence = watched
        try:
            output = super().update_actor(data)
        finally:
            loss.linear_divergence = ours
        metrics = tu.get(output, "metrics")
        for side, log_probs in ((side, torch.cat(found)) for side, found in seen.items() if found):
            first = self.first_seen.setdefault(side, log_probs)
            if first.shape == log_probs.shape:  # else it is another batch
                metrics[f"moved/{side}"] = float((log_probs - first).abs().max())
        average = self.actor.engine.average
        if average is not None:
            decay = self.trd.teacher.ema_decay
            now = self._trained()
            self.averaged = {name: decay * old + (1 - decay) * now[name] for name, old in self.averaged.items()}
            errors = [(average.shards[name] - value).abs().max() for name, value in self.averaged.items()]
            metrics["average_error"] = float(max(errors))
        return output

    def _trained(self) -> dict[str, torch.Tensor]:
        parameters = self.actor.engine.module.named_parameters()
        return {name: p.to_local().double().clone() for name, p in parameters if p.requires_grad}


class TourTrainer(TrdTrainer):
    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        self.role_worker_mapping[Role.ActorRollout] = ray.remote(TourWorker)

    def on_train_begin(self) -> None:
        super().on_train_begin()
        self.first_weights = str(Path(self.config.trainer.default_local_dir) / "first_weights")
        self.actor_rollout_wg.save_checkpoint(self.first_weights)

    def prepare_step(self) -> dict:
        case = list(self.config.tour.values())[self.global_steps - 1]
        trd = OmegaConf.to_container(case.trd)
        with open_dict(self.config):
            self.config.trd = case.trd
            self.config.algorithm.adv_estimator = case.adv_estimator
            self.config.actor_rollout_ref.rollout.n = case.num_rollouts
        self.actor_rollout_wg.take_up(trd, case.loss_agg_mode)
        workers = self.agent_loop_manager.agent_loop_workers
        ray.get([worker.take_up.remote(trd, case.num_rollouts) for worker in workers])
        return super().prepare_step()

    def _update_actor(self, batch, metrics):
        for index in range(NUM_UPDATES):
            update: dict = {}
            batch = super()._update_actor(batch, update)
            metrics.update({f"tour/{name}/{index}": value for name, value in update.items()})
            metrics.update(update)
        return batch

    def on_step_end(self) -> None:
        # The servers keep the first weights all along.
        self.actor_rollout_wg.start_again(self.first_weights)


class TourTaskRunner(TrdTaskRunner):
    def run(self, config: DictConfig) -> None:
        register_trainer("tour")(TourTrainer)
        super().run(config)


def composed(overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        return compose("trd_trainer", overrides=overrides)


def main(cases: dict[str, list[str]], run_dir: Path) -> None:
    configs = {name: composed(overrides) for name, overrides in cases.items()}
    for config in configs.values():
        checks.check(config)
    config = composed([*cases["trd_opd"], f"trainer.default_local_dir={run_dir}"])
    checks.check(config)
    OmegaConf.resolve(config)
    with open_dict(config):
        config.trainer.total_training_steps = len(cases)
        config.trainer.v1.trainer_mode = "tour"
        config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = "method_tour.TourAgentLoopManager"
        config.tour = {
            name: {
                "trd": OmegaConf.to_container(case.trd, resolve=True),
                "adv_estimator": case.algorithm.adv_estimator,
                "num_rollouts": case.actor_rollout_ref.rollout.n,
                "loss_agg_mode": case.actor_rollout_ref.actor.loss_agg_mode,
            }
            for name, case in configs.items()
        }
    run_dir.mkdir(parents=True, exist_ok=True)
    run_ppo(config, task_runner_class=ray.remote(TourTaskRunner))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
