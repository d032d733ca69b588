"""What a run stands on: its folder, earlier checkpoints, disk, loggers, devices, paths short enough for sockets."""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from verl.utils.tracking import Tracking

from verl_ext.runtime import checkpoints
from verl_ext.runtime.console import show
from verl_ext.runtime.resources import required

SAME = ("trd.method", "actor_rollout_ref.model.path", "actor_rollout_ref.model.lora_rank", "data.train_files")
"""Keys that a run which resumes must share with the one that left the checkpoint."""

LOCAL_TEMP = "/tmp"
SOCKET_LIMIT = 107
"""Bytes of a path of a UNIX socket."""
RAY_PATH = len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")


def check_resume(config: DictConfig) -> None:
    """A checkpoint that would be resumed is there, whole, and comes from a run of the same method, model and data.

    Raises:
        ValueError: it does not; the message names the key that differs.
    """
    mode, run_dir = config.trainer.resume_mode, Path(config.trainer.default_local_dir)
    if mode == "resume_path":
        path = config.trainer.resume_from_path
        if not path or "global_step_" not in str(path) or not Path(path).is_dir():
            raise ValueError(
                f"trainer.resume_from_path={path}: no folder global_step_<n> of a run is there; give one, or set "
                "trainer.resume_mode=auto or disable"
            )
        if problem := checkpoints.damage(Path(path)):
            raise ValueError(f"trainer.resume_from_path={path} is damaged ({problem}): give another checkpoint")
        run_dir = Path(path).parent
    elif mode == "disable" or not (run_dir / checkpoints.MARK).exists():
        return
    elif checkpoints.saved(run_dir) and checkpoints.newest(run_dir)[0] is None:
        raise ValueError(
            f"trainer.default_local_dir={run_dir}: none of its checkpoints is whole; set it to another folder, or "
            "trainer.resume_mode=disable to begin anew"
        )
    made = run_dir / "config.yaml"
    if not made.is_file():
        return
    before = OmegaConf.create(yaml.safe_load(made.read_text(encoding="utf-8")))
    for key in SAME:
        was, now = OmegaConf.select(before, key), OmegaConf.select(config, key)
        if was is not None and _plain(was) != _plain(now):
            raise ValueError(
                f"{key}={now}, but the checkpoint in {run_dir} was made with {was}: set trainer.default_local_dir to "
                "another folder, or trainer.resume_mode=disable to begin anew"
            )


def finished_step(config: DictConfig) -> int | None:
    """The last step, where the run folder already has its checkpoint and the run would do nothing; else None."""
    steps = config.trainer.total_training_steps
    if config.trainer.resume_mode != "auto" or steps is None:
        return None
    newest, _ = checkpoints.newest(Path(config.trainer.default_local_dir))
    step = None if newest is None else int(checkpoints.step_of(newest))
    return step if step is not None and step >= steps else None


def _plain(value: object) -> object:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def check_disk(config: DictConfig) -> None:
    """There is room for a checkpoint, where one will be written.

    Raises:
        ValueError: there is not room for a single one.
    """
    model = Path(config.actor_rollout_ref.model.path)
    if config.trainer.save_freq < 1 or not model.is_dir():
        return
    weights = sum(file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in model.glob(pattern))
    # Weights and the two moments of AdamW; of a LoRA student these are small, and its base is written too.
    copies = 1 if config.actor_rollout_ref.model.lora_rank else 3
    free = shutil.disk_usage(_existing(Path(config.trainer.default_local_dir))).free
    kept = config.trainer.max_actor_ckpt_to_keep or 1
    where = f"{config.trainer.default_local_dir} has {free / 2**30:.1f} GiB free"
    if free < copies * weights:
        raise ValueError(
            f"trainer.save_freq={config.trainer.save_freq}: a checkpoint takes {copies * weights / 2**30:.1f} GiB and "
            f"{where}: set trainer.default_local_dir to a larger disk, or trainer.save_freq=-1"
        )
    # The new one is written before the oldest is removed.
    if free < (kept + 1) * copies * weights:
        show(f"WARNING {kept + 1} checkpoints take about {(kept + 1) * copies * weights / 2**30:.1f} GiB, and {where}")


def check_loggers(config: DictConfig) -> None:
    """Loggers are known to verl and installed; without `file` there is nothing to summarise.

    Raises:
        ValueError: one is not.
    """
    value = config.trainer.logger
    loggers = [value] if isinstance(value, str) else list(value)
    for name in loggers:
        if name not in Tracking.supported_backend:
            raise ValueError(
                f"trainer.logger has {name}, which verl does not know; choose from "
                f"{', '.join(Tracking.supported_backend)}"
            )
        package = {"console": "json", "file": "json", "vemlp_wandb": "volcengine_ml_platform"}.get(name, name)
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"trainer.logger has {name}, which is not installed: pip install {package}, or leave it out"
            )
    if "file" not in loggers:
        show("WARNING trainer.logger has no `file`: without metrics.jsonl the summary of the run has no metrics")


def check_devices(config: DictConfig) -> None:
    """This machine has the devices that the run asks for; clusters that Ray knows already are asked when it starts.

    Raises:
        ValueError: it has fewer.
    """
    init = config.ray_kwargs.ray_init
    if os.environ.get("RAY_ADDRESS") or OmegaConf.select(init, "address") or config.trainer.nnodes > 1:
        return
    needed = required(config)
    have = {"GPU": OmegaConf.select(init, "num_gpus"), "CPU": OmegaConf.select(init, "num_cpus")}
    if have["GPU"] is None and config.trainer.device == "cuda":
        import torch

        have["GPU"] = torch.cuda.device_count() or None
    if have["CPU"] is None:
        have["CPU"] = os.cpu_count()
    keys = {"GPU": "trainer.n_gpus_per_node or distillation.n_gpus_per_node", "CPU": "the numbers of workers"}
    for name, units in needed.items():
        limit = have[name]
        if limit is not None and limit < units:
            raise ValueError(
                f"trainer.n_gpus_per_node={config.trainer.n_gpus_per_node}: the run needs {units:g} {name}s of Ray, "
                f"and this machine has {limit:g}; lower {keys[name]}, or raise ray_kwargs.ray_init.num_{name.lower()}s "
                "where they are logical"
            )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there already."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def check_run_folder(config: DictConfig) -> None:
    """The run folder can be written; nothing is left there.

    Raises:
        ValueError: it cannot.
    """
    folder = Path(config.trainer.default_local_dir)
    try:
        with tempfile.TemporaryDirectory(dir=_existing(folder)):
            pass
    except OSError as error:
        raise ValueError(
            f"trainer.default_local_dir={folder}: nothing can be written there ({error.strerror or error}); set it to "
            "another folder"
        ) from error


def shorten_socket_paths() -> None:
    """Ray's and vLLM's sockets get a short folder where that of TMPDIR is too long for them.

    Raises:
        ValueError: there is no short folder either.
    """
    temp = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(temp)) + RAY_PATH <= SOCKET_LIMIT:
        return
    if not os.access(LOCAL_TEMP, os.W_OK):
        raise ValueError(
            f"TMPDIR={temp} is too long for Ray's sockets (at most {SOCKET_LIMIT - RAY_PATH} characters) and "
            f"{LOCAL_TEMP} cannot be written: set RAY_TMPDIR to a short folder"
        )
    os.environ["RAY_TMPDIR"] = os.environ["VLLM_RPC_BASE_PATH"] = LOCAL_TEMP
    show(f"WARNING TMPDIR={temp} is too long for sockets: Ray and vLLM use {LOCAL_TEMP} instead")
