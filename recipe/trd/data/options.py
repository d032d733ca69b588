"""Options of `prepare`; the command line in `__main__.py` has their defaults and explanations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.trd.data.sources import CODE, MATH


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns of your own data."""

    prompt: str
    answer: str
    solution: str | None
    id: str | None
    data_source: str
    kind: str

    def __post_init__(self) -> None:
        """Refuse an unknown kind."""
        if self.kind not in (MATH, CODE):
            raise ValueError(f"--kind={self.kind} must be {MATH} or {CODE}")


@dataclass(frozen=True, kw_only=True)
class Options:
    """One preparation."""

    name: str
    out: Path
    from_path: Path | None
    splits: tuple[str, ...]
    """`train`, `test`; empty for all that the set has."""

    columns: Columns | None
    """For your own data; None for the public sets."""

    system: str | None
    instruction: str | None
    """None for the default; empty for none."""

    tokenizer: str | None
    max_prompt_length: int | None
    template_kwargs: dict[str, Any]
    against: tuple[str, ...] | None
    """Names of sets or prepared files; None for the evaluation sets of the kind."""

    ngram: int
    min_overlap: float
    max_tests: int | None
    max_rows: int | None
    val_size: int | None
    seed: int
    keep_flagged: bool

    def __post_init__(self) -> None:
        """Refuse values that are out of range or do not go together."""
        if self.max_prompt_length is not None and self.tokenizer is None:
            raise ValueError("--max-prompt-length counts tokens: it needs --tokenizer, the path of the student's")
        for flag, value, least in (
            ("--max-prompt-length", self.max_prompt_length, 1),
            ("--ngram", self.ngram, 1),
            ("--max-tests", self.max_tests, 1),
            ("--max-rows", self.max_rows, 1),
            ("--val-size", self.val_size, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"{flag}={value} must be at least {least}")
        if not 0.0 <= self.min_overlap <= 1.0:
            raise ValueError(f"--min-overlap={self.min_overlap} must be in [0, 1]")
