"""A LoRA student as its own teacher, on one server: `python -m adapter_tour CASES.json RUN_DIR`.

One run, each step of which takes up a case: adapters off or averaged, scored by the trainer or by the server. After
every update the server and the trainer's module are asked for the distributions of one sequence, with each of the
weights that the server is to have. CASES.json: [[name, overrides], ...]; the server is that of the last case. A module,
because Ray's workers import it too (PYTHONPATH).
"""

import gc
import json
import sys
from pathlib import Path
from uuid import uuid4

import numpy as np
import psutil
import ray
import torch
from method_tour import TourAgentLoopManager, TourWorker, composed
from omegaconf import DictConfig, OmegaConf, open_dict
from torch.distributed.tensor import DTensor
from verl.single_controller.base.decorator import Dispatch, register
from verl.trainer.main_ppo import run_ppo
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer

from recipe.trd.preflight import checks
from recipe.trd.training.task_runner import TrdTaskRunner
from recipe.trd.training.trainer import TrdTrainer

TOP_K = 8
PROBLEM, ANSWER = "Compute 19-3+8-2", "19-3=16\n16+8=24\n24-2=22"


class AdapterWorker(TourWorker):
    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def distributions(self, ids: list[int]) -> dict[str, np.ndarray]:
        """Top-k log-probs of the module in place of the tokens after the first, with each of the weights."""
        engine = self.actor.engine
        # verl's server gives no probability to the padding of the head.
        num_tokens = len(engine.model_config.tokenizer)

        def run() -> np.ndarray:
            with torch.no_grad():
                logits = engine.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1, :num_tokens]
            return logits.log_softmax(-1).topk(TOP_K).values.numpy()

        engine.module.eval()
        found = {"student": run()}
        with engine.disable_adapter():
            found["base"] = run()
        if self.rollout.average is not None:  # else the server has none to compare with
            with engine.average.swapped_in():
                found["average"] = run()
        return found

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def num_parameters(self) -> dict[str, int]:
        """All that live in this process, and those that are trained; what FSDP gathers for a pass is given back."""
        for part in self.actor.engine.module.modules():
            getattr(part, "reshard", lambda: None)()
        storages = {}
        for thing in gc.get_objects():
            if isinstance(thing, torch.nn.Parameter):
                local = thing.to_local() if isinstance(thing, DTensor) else thing.data
                storage = local.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes() // local.element_size()
        trained = [p.numel() for p in self.actor.engine.module.parameters() if p.requires_grad]
        return {"all": sum(storages.values()), "trained": sum(trained)}


class AdapterTrainer(TrdTrainer):
    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        self.role_worker_mapping[Role.ActorRollout] = ray.remote(AdapterWorker)

    def on_init_end(self) -> None:
        super().on_init_end()
        chat = [{"role": "user", "content": PROBLEM}]
        prompt = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        self.sequence = [*prompt, *self.tokenizer.encode(ANSWER, add_special_tokens=False)]
        self.taken_up = None
        self.note("0")

    def prepare_step(self) -> dict:
        name, case = self.config.tour[self.global_steps - 1]
        if name != self.taken_up:
            self.take_up(case)
            self.taken_up = name
        return super().prepare_step()

    def take_up(self, case: DictConfig) -> None:
        trd = OmegaConf.to_container(case)
        with open_dict(self.config):
            self.config.trd = case
        self.actor_rollout_wg.take_up(trd, self.config.actor_rollout_ref.actor.loss_agg_mode)
        ray.get([worker.take_up.remote(trd, 1) for worker in self.agent_loop_manager.agent_loop_workers])
        # What the case wants of the server arrives there with the weights.
        self.checkpoint_manager.sleep_replicas()
        self.checkpoint_manager.update_weights(self.global_steps)

    def on_step_end(self) -> None:
        super().on_step_end()
        self.note(str(self.global_steps))
        if self.global_steps == len(self.config.tour) - 1:
            self.resume()

    def resume(self) -> None:
        """As a run that starts again: a new average, then that of the checkpoint, then the weights of the server."""
        folder = str(Path(self.config.trainer.default_local_dir) / "saved")
        self.actor_rollout_wg.save_checkpoint(folder)
        self.take_up(self.config.trd)
        self.note("new")
        self.actor_rollout_wg.load_checkpoint(folder)
        self.checkpoint_manager.update_weights(self.global_steps)
        self.note("resumed")

    def note(self, name: str) -> None:
        (server,) = [replica.server_handle for replica in self.llm_server_manager.get_replicas()]
        ray.get(server.check_weights.remote())  # what the trainer asks of servers that know it
        (module,) = self.actor_rollout_wg.distributions(self.sequence)
        found = {f"module_{weights}": values for weights, values in module.items()}
        for weights in {"base", "average"} & set(module):
            answer = ray.get(
                server.generate.remote(
                    self.sequence, {}, uuid4().hex, topk=TOP_K, score_from=1, averaged=weights == "average"
                )
            )
            found[f"server_{weights}"] = answer.extra_fields["topk_log_probs"]
        # As a rollout asks: verl's own path.
        answer = ray.get(
            server.generate.remote(
                self.sequence, {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": TOP_K}, uuid4().hex
            )
        )
        found["server_student"] = np.array(answer.extra_fields["prompt_logprobs"][:-1], np.float32)
        np.savez(Path(self.config.trainer.default_local_dir) / f"answers_{name}.npz", **found)
        counts = {"parameters": self.actor_rollout_wg.num_parameters()[0], "processes": processes()}
        (Path(self.config.trainer.default_local_dir) / "counts.json").write_text(json.dumps(counts))


def processes() -> list[str]:
    """Titles of everything that this Ray cluster runs."""
    raylet = psutil.Process().parent()
    return [" ".join(process.cmdline()) for process in raylet.children(recursive=True)]


class AdapterTaskRunner(TrdTaskRunner):
    def run(self, config: DictConfig) -> None:
        register_trainer("adapters")(AdapterTrainer)
        super().run(config)


def main(cases: list[tuple[str, list[str]]], run_dir: Path) -> None:
    configs = [composed([*overrides, f"trainer.default_local_dir={run_dir}"]) for _, overrides in cases]
    for config in configs:
        checks.check(config)
    config = configs[-1].copy()
    OmegaConf.resolve(config)
    with open_dict(config):
        config.trainer.total_training_steps = len(cases)
        config.trainer.v1.trainer_mode = "adapters"
        config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = f"method_tour.{TourAgentLoopManager.__name__}"
        config.tour = [
            [name, OmegaConf.to_container(case.trd, resolve=True)]
            for (name, _), case in zip(cases, configs, strict=True)
        ]
    run_dir.mkdir(parents=True, exist_ok=True)
    run_ppo(config, task_runner_class=ray.remote(AdapterTaskRunner))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
