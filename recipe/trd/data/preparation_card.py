"""The card of a preparation: every row that was read is either in a file or counted under a reason."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recipe.trd.data.decontaminate import Match
from verl_ext.runtime import files


@dataclass
class SplitCard:
    """What happened to the rows of one split of the source."""

    origin: str
    """Where the rows came from: the hub, or the names of the files."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason to rows."""

    written: dict[str, int] = field(default_factory=dict)
    """File to rows."""

    with_reference: int = 0
    """Rows that have a reference solution."""

    prompt_tokens: dict[str, int] = field(default_factory=dict)
    matches: list[tuple[int, Match]] = field(default_factory=list)
    """Row of the source and the evaluation problem that it repeats."""

    def check(self) -> None:
        """Assert that every row is accounted for."""
        accounted = sum(self.dropped.values()) + sum(self.written.values())
        assert self.read == accounted, f"{self.read} rows read, {accounted} accounted for"


@dataclass
class Card:
    """One preparation."""

    name: str
    source: str
    license: str
    settings: dict[str, Any]
    compared_with: dict[str, int] | None
    """Evaluation set to its problems, for decontamination; empty if it was left out, None without training rows."""

    splits: dict[str, SplitCard] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything, with the matches of decontamination one by one."""
        card = {key: getattr(self, key) for key in ("name", "source", "license", "settings", "compared_with")}
        card["splits"] = {}
        for name, split in self.splits.items():
            matches = [{"index": index, **asdict(match)} for index, match in split.matches]
            dropped = dict(sorted((+split.dropped).items()))
            card["splits"][name] = asdict(split) | {"dropped": dropped, "matches": matches}
        return card

    def as_markdown(self) -> str:
        """The same, to read."""
        lines = [f"# {self.name}", "", f"Source: {self.source}. Licence: {self.license}.", ""]
        for name, split in self.splits.items():
            lines += [f"## {name}, from {split.origin}", "", "| rows | |", "|---|---:|", _line("read", split.read)]
            lines += [_line(f"left out: {reason}", count) for reason, count in sorted((+split.dropped).items())]
            lines += [_line(f"**{file}**", count) for file, count in split.written.items()]
            lines += [_line("with a reference solution", split.with_reference)]
            lines += [_line(f"prompt tokens, {key}", value) for key, value in split.prompt_tokens.items()]
            lines.append("")
        if self.compared_with is not None:
            compared = ", ".join(f"{name} ({count})" for name, count in self.compared_with.items())
            lines += [f"Training rows were compared with evaluation problems of: {compared or 'no set'}.", ""]
        lines += [f"Settings: `{json.dumps(self.settings, ensure_ascii=False)}`", ""]
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """Write `card.json` and `card.md`."""
        text = json.dumps(self.as_json(), indent=1, ensure_ascii=False)
        files.write_text(folder / "card.json", f"{text}\n")
        files.write_text(folder / "card.md", self.as_markdown())


def _line(what: str, count: int) -> str:
    return f"| {what} | {count:,} |"


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options for the card: without those that are None; paths as text."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items() if value is not None}
