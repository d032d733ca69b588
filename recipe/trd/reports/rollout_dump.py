"""One JSON line for every training sample: what was asked, what the student said, what the teacher made of it."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase


def rows(records: Sequence[dict[str, Any]], *, tokenizer: PreTrainedTokenizerBase, step: int) -> list[dict[str, Any]]:
    """Readable rows from the step's records, sorted by prompt and session. Lengths in tokens, end of turn included."""

    def text(ids: list[int] | None) -> str | None:
        return None if ids is None else str(tokenizer.decode(ids, skip_special_tokens=True))

    return [
        {
            "uid": record["uid"],
            "step": step,
            "x": text(record["prompt_ids"]),
            "y_o": text(record["y_o_ids"]),
            "y_r": text(record["y_r_ids"]),
            "trained_on": record["trained_on"],
            "verdict": record["verdict"],
            "y_o_acc": record["y_o_acc"],
            "y_r_acc": record["y_r_acc"],
            "y_o_length": len(record["y_o_ids"]),
            "y_r_length": len(record["y_r_ids"] or []),
            "y_o_cut_tokens": record["num_cut"],
            "reward": record["reward"],
            "ground_truth": record["ground_truth"],
            "teacher_context": text(record["teacher_prompt_ids"]),
        }
        for record in sorted(records, key=lambda record: record["uid"])
    ]


def write(lines: Iterable[dict[str, Any]], *, folder: str, step: int) -> Path:
    """Write `<folder>/<step>.jsonl`; a reader never sees half a file.

    Raises:
        OSError: the disk is full or the folder is not writable; verl raises it at the next dump or at the end.
    """
    path = Path(folder) / f"{step}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    os.replace(partial, path)
    return path
