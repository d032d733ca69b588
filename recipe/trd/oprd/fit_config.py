"""Types of every key in `configs/fit_bridge.yaml`, and the values that are refused."""

from dataclasses import dataclass
from typing import Any

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Types of every key in `configs/fit_bridge.yaml`; values and their meaning live there."""

    student: str
    teacher: str
    train_files: Any
    out: str
    prompt_key: str
    apply_chat_template_kwargs: dict[str, Any] | None
    num_prompts: int
    max_prompt_length: int
    max_response_length: int
    temperature: float
    vllm: dict[str, Any] | None
    num_positions: int
    rank: int
    max_rows: int
    held_out_frac: float
    min_cosine: float
    batch_tokens: int
    dtype: str
    device: str
    seed: int

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for key in ("max_prompt_length", "max_response_length", "num_positions", "rank", "max_rows", "batch_tokens"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1")
        if self.num_prompts < 2:
            raise ValueError(f"num_prompts={self.num_prompts} must be at least 2: one to fit on, one to hold out")
        if not 0 < self.held_out_frac < 1:
            raise ValueError(f"held_out_frac={self.held_out_frac} must be in (0, 1)")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be above 0: maps are fitted on what is sampled")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is not one of {', '.join(DTYPES)}")
