"""A run whose server gets other weights in its second step: `python -m foreign_weights WHICH RUN_DIR [overrides]`.

WHICH is `student` or `teacher` (noise on all weights), or `adapter` (the student's LoRA is taken off its server). A
module, because Ray's workers import it too (PYTHONPATH).
"""

import os
import sys
from pathlib import Path

import ray
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.trainer.main_ppo import run_ppo
from verl.trainer.ppo.v1.trainer_base import register_trainer

from recipe.trd.config.paths import CONFIG_DIR
from recipe.trd.preflight import checks
from recipe.trd.training.task_runner import TrdTaskRunner
from recipe.trd.training.trainer import TrdTrainer, server_groups
from verl_ext.server import topk_server


def add_noise(worker) -> None:
    torch.manual_seed(0)
    for parameter in worker.model_runner.model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * parameter.std())


class ForeignServer(topk_server.TopKServer):
    async def disturb(self, which: str) -> None:
        if which == "adapter":
            for adapter in await self.engine.list_loras():
                await self.engine.remove_lora(adapter)
        else:
            await self.engine.collective_rpc(add_noise)
            await self.engine.reset_prefix_cache()


class ForeignReplica(topk_server.TopKReplica):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(ForeignServer)


class ForeignTrainer(TrdTrainer):
    def _check_servers(self) -> None:
        super()._check_servers()
        if self.global_steps == 2:
            which = self.config.foreign
            student, teacher = server_groups(self)
            for replica in teacher if which == "teacher" else student:
                ray.get(replica.server_handle.disturb.remote(which))


class ForeignTaskRunner(TrdTaskRunner):
    def run(self, config: DictConfig) -> None:
        register_trainer("foreign")(ForeignTrainer)
        topk_server.TopKReplica = ForeignReplica
        super().run(config)


def main(which: str, run_dir: str, overrides: list[str]) -> None:
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        config = compose("trd_trainer", overrides=[*overrides, f"trainer.default_local_dir={run_dir}"])
    checks.check(config)
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    OmegaConf.resolve(config)
    with open_dict(config):
        config.foreign = which
        config.trainer.v1.trainer_mode = "foreign"
    run_ppo(config, task_runner_class=ray.remote(ForeignTaskRunner))


if __name__ == "__main__":
    # Functions go to vLLM's workers.
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
