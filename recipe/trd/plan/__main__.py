"""A run's whole configuration, and what it will ask of its GPUs. Nothing is loaded or started.

    python -m recipe.trd.plan method=trd_opd model=qwen2_5_7b data=math cluster=gpu [any.key=value ...]

`GPU_MEMORY_GIB` in the environment is the size of a GPU (default 79, what one of 80 GB offers). Exit code 1 when
something does not fit, 2 when there is no plan. How memory is computed is in memory.py.
"""

import os
import sys

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from recipe.trd.config.paths import CONFIG_DIR
from recipe.trd.plan import memory


@hydra.main(config_path=str(CONFIG_DIR), config_name="trd_trainer", version_base=None)
def main(config: DictConfig) -> None:
    """Print configuration and plan."""
    gpu_gib = float(os.environ.get("GPU_MEMORY_GIB", "79"))
    print("# Configuration")
    print(OmegaConf.to_yaml(config, resolve=True))
    print("# Plan")
    try:
        plan = memory.make(config, gpu_gib=gpu_gib)
    except (ValueError, InstantiationException) as error:
        print(f"no plan: {error.__cause__ or error}", file=sys.stderr)
        raise SystemExit(2) from None
    if config.trainer.device == "cpu":
        print("no accelerator: the numbers are those that GPUs would have")
    print(*plan.lines, sep="\n")
    for problem in plan.problems:
        print(f"DOES NOT FIT: {problem}")
    if not plan.problems:
        print(f"fits into GPUs of {gpu_gib:g} GiB")
    raise SystemExit(1 if plan.problems else 0)


if __name__ == "__main__":
    main()
