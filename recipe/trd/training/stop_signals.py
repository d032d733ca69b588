"""SIGUSR1 and SIGTERM: the run saves after its present step, and ends with an exit code that asks for another start."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.trd.training.preemption import STOP_FILE, stopped_file
from verl_ext.runtime.console import show

STOP_AGAIN = 75
"""Exit code of a run that stopped on request and has more to do (EX_TEMPFAIL of sysexits.h): start it again."""


def install(config: DictConfig, run_dir: Path) -> None:
    """Turn the signals into the file that `preemption` looks for. A second one, or Ctrl-C, ends the run at once.

    Where `TRD_STOP_FILE` is set already, somebody else turns signals into requests (scripts/slurm/job.sh), and SIGTERM
    ends the run at once.

    Args:
        config: of the run; every process is told of the file.
        run_dir: where the file will lie.
    """
    if STOP_FILE in os.environ:
        _handlers[signal.SIGTERM] = signal.default_int_handler
        _arm()
        return
    stop_file = run_dir / ".stop"
    for path in (stop_file, stopped_file(stop_file)):
        path.unlink(missing_ok=True)
    os.environ[STOP_FILE] = str(stop_file)
    OmegaConf.update(config, f"ray_kwargs.ray_init.runtime_env.env_vars.{STOP_FILE}", str(stop_file), force_add=True)

    def request(number: int, frame: FrameType | None) -> None:
        if stop_file.exists():
            raise KeyboardInterrupt
        stop_file.touch()
        show(f"{signal.Signals(number).name}: the run is asked to save and stop; once more ends it at once")

    _handlers.update({signal.SIGUSR1: request, signal.SIGTERM: request})
    _arm()


_handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]] = {}


def _arm() -> None:
    for number, handler in _handlers.items():
        signal.signal(number, handler)


class TakenBack:
    """A Ray actor class that takes the signals back before it is used: `ray.init` has SIGTERM abort the process."""

    def __init__(self, actor_class: Any) -> None:
        """Args: actor_class: what `ray.remote` makes of a class."""
        self._actor_class = actor_class

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Ray's; called in the main thread, once Ray is up."""
        _arm()
        return self._actor_class.remote(*args, **kwargs)

    def options(self, **options: Any) -> "TakenBack":
        """Ray's."""
        return TakenBack(self._actor_class.options(**options))


def stopped(run_dir: Path) -> bool:
    """Whether the run that ended stopped on one of these signals, before its last step."""
    return stopped_file(run_dir / ".stop").exists()
