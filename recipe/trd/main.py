"""Entry point: `python -m recipe.trd.main method=trd_opd model=... data=... cluster=... [verl's keys]`.

Composes the configuration, checks everything that can be checked without starting a process, then hands over to verl.
"""

import os
import sys
import time
from pathlib import Path

import hydra
import psutil
from omegaconf import DictConfig, OmegaConf

from recipe.trd.config.paths import CONFIG_DIR

REFUSED, FAILED, INTERRUPTED = 2, 1, 130
"""Exit codes: the configuration cannot work; the run failed; Ctrl-C. See also stop_signals.STOP_AGAIN."""


@hydra.main(config_path=str(CONFIG_DIR), config_name="trd_trainer", version_base=None)
def main(config: DictConfig) -> None:
    """Check, train, summarise; the exit code says how it went."""
    _composed.append(True)
    # Imported here, so that `--help` and `--cfg` answer at once.
    from recipe.trd.reports import run_folder
    from recipe.trd.training import stop_signals
    from verl_ext.runtime import leftovers

    run_dir = Path(config.trainer.default_local_dir).absolute()
    config.trainer.default_local_dir = str(run_dir)
    try:
        run_folder.prepare(run_dir, resume=config.trainer.resume_mode != "disable")
    except OSError as error:
        print(
            f"cannot start: trainer.default_local_dir={run_dir}: nothing can be written there "
            f"({error.strerror or error}); set it to another folder",
            file=sys.stderr,
        )
        raise SystemExit(REFUSED) from None
    leftovers.remove_stale_shared_memory()
    stop_signals.install(config, run_dir)
    with leftovers.process_guard():
        code = run(config, run_dir)
    if code == 0:
        from recipe.trd.reports import run_summary

        run_summary.report(run_dir)
        code = stop_signals.STOP_AGAIN if stop_signals.stopped(run_dir) else 0
    raise SystemExit(code)


def run(config: DictConfig, run_dir: Path) -> int:
    """Check the configuration, then run verl on it, with a readable terminal.

    Args:
        config: composed; resolved in place.
        run_dir: exists; gets `log.txt` with everything that was printed.

    Returns:
        Exit code.
    """
    from verl_ext.runtime import console
    from verl_ext.runtime.errors import one_line

    refusal = None
    try:
        with console.capture(run_dir / "log.txt"):
            refusal = check(config)
            finished = None if refusal else last_step(config)
            if finished is not None:
                console.show(
                    f"nothing to do: {run_dir} already has the checkpoint of step {finished}, and "
                    f"trainer.total_training_steps={config.trainer.total_training_steps}"
                )
            elif refusal is None:
                train_through(config, run_dir)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command resumes from the last checkpoint in {run_dir}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        print(f"the run failed: {one_line(error)}", file=sys.stderr)
        return FAILED
    if refusal is not None:
        print(f"cannot start: {refusal}", file=sys.stderr)
        return REFUSED
    return 0


def check(config: DictConfig) -> str | None:
    """Why this configuration cannot work, in one line; None when it can."""
    from recipe.trd.preflight import checks

    try:
        checks.check(config)
    except checks.REFUSALS as error:
        return checks.refusal(error)
    return None


def last_step(config: DictConfig) -> int | None:
    """Step of the newest checkpoint, where the run folder has all that the run would do; else None."""
    from recipe.trd.preflight import surroundings

    return surroundings.finished_step(config)


def train_through(config: DictConfig, run_dir: Path) -> None:
    """Train; where processes died after a checkpoint was saved, go on from there by itself.

    Raises:
        Exception: whatever ended the run, once it cannot or may not go on.
    """
    import ray

    from recipe.trd.reports import reporting, run_folder
    from verl_ext.runtime import checkpoints, console, leftovers
    from verl_ext.runtime.errors import is_process_death, one_line

    for attempt in range(1 + config.trd.faults.restarts):
        before, _ = checkpoints.newest(run_dir)
        try:
            train(config, run_dir)
            return
        except Exception as error:
            newest, _ = checkpoints.newest(run_dir)
            may_restart = attempt < config.trd.faults.restarts and newest is not None and newest != before
            if not may_restart or not is_process_death(error):
                raise
            console.show(
                f"WARNING {one_line(error)}: the run goes on from {newest}, restart {attempt + 1} of "
                f"{config.trd.faults.restarts}"
            )
        # First Ray, without which this process would be ended with the rest.
        ray.shutdown()
        leftovers.end_processes()
        config.trainer.resume_mode = "auto"
        os.environ[reporting.LAUNCHED_AT] = str(time.time())
        run_folder.prepare(run_dir, resume=True)


def train(config: DictConfig, run_dir: Path) -> None:
    """Hand a checked configuration over to verl.

    Raises:
        Exception: whatever ended the run.
    """
    from verl.trainer.main_ppo import run_ppo

    from recipe.trd.reports import provenance, reporting
    from recipe.trd.training import stop_signals, task_runner

    # verl copies `ray_kwargs` out of the tree, where an interpolation would lose its root.
    OmegaConf.resolve(config)
    os.environ.setdefault(reporting.LAUNCHED_AT, str(psutil.Process().create_time()))
    provenance.write_provenance(run_dir, config)
    run_ppo(config, task_runner_class=stop_signals.TakenBack(task_runner.remote_class()))


def command() -> None:
    """`main`, and a suggestion where Hydra does not know a key or a choice."""
    try:
        main()
    except SystemExit as ended:
        # Hydra's code for whatever ended the program before it was asked to run; ours are printed with their reason.
        if ended.code == 1 and not _composed:
            from recipe.trd.config import misspelled

            for line in misspelled.suggestions(sys.argv[1:]):
                print(f"cannot start: {line}", file=sys.stderr)
            raise SystemExit(REFUSED) from None
        raise


_composed: list[bool] = []
"""Not empty once Hydra has composed the configuration."""


if __name__ == "__main__":
    command()
