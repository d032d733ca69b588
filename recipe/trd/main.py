"""Entry point: `python -m recipe.trd.main method=trd_opd model=... data=... cluster=... [verl's keys]`.

Composes the configuration, checks everything that can be checked without starting a process, then hands over to verl.
"""

import os
import sys
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


CONFIG_DIR = Path(__file__).parents[2] / "configs"


@hydra.main(config_path=str(CONFIG_DIR), config_name="trd_trainer", version_base=None)
def main(config: DictConfig) -> None:
    """Check, train, summarise. Exits with 2 on a setting that cannot work, with 1 when the run failed."""
    # Imported here, so that `--help` and `--cfg` answer at once.
    from recipe.trd import preflight

    try:
        preflight.check(config)
    except (ValueError, OSError, OmegaConfBaseException, AssertionError, NotImplementedError) as error:
        print(f"cannot start: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(train(config))


def train(config: DictConfig) -> int:
    """Run verl on a checked configuration.

    Args:
        config: relative folders in it are those of the working directory.

    Returns:
        Exit code: 0, 1 after a failure, 130 after Ctrl-C.
    """
    from verl.trainer.main_ppo import run_ppo

    from recipe.trd import reporting, summary, task_runner
    from verl_ext import console, leftovers

    os.environ.setdefault(reporting.LAUNCHED_AT, str(time.time()))
    run_dir = Path(config.trainer.default_local_dir).absolute()
    config.trainer.default_local_dir = str(run_dir)
    # verl copies `ray_kwargs` out of the tree, where an interpolation would lose its root.
    OmegaConf.resolve(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    leftovers.remove_stale_shared_memory()
    summary.write_provenance(run_dir, config)
    with leftovers.process_guard():
        try:
            with console.capture(run_dir / "log.txt"):
                run_ppo(config, task_runner_class=task_runner.remote_class())
        except KeyboardInterrupt:
            print(f"\ninterrupted; run again to resume from the last checkpoint in {run_dir}", file=sys.stderr)
            return 130
        except Exception as error:
            print(f"the run failed: {type(error).__name__}: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
            print(f"everything it printed: {run_dir / 'log.txt'}", file=sys.stderr)
            return 1
    summary.report(run_dir)
    return 0


if __name__ == "__main__":
    main()
