"""One JSON line for every training sample: the prompt, the student's response and the teacher's rewrite of it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from verl_ext.runtime import files


def readable_samples(
    records: Sequence[dict[str, Any]], *, tokenizer: PreTrainedTokenizerBase, step: int
) -> list[dict[str, Any]]:
    """The step's records with token ids decoded, sorted by prompt and session. Lengths in tokens, end of turn included.

    Args:
        records: as `rewrite.records` makes them.
        tokenizer: the student's.
        step: number of the training step.
    """

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
            "rewrite_attempts": record["num_attempts"],
            "rewrite_thought_tokens": record["num_thought_tokens"],
            "rewrite_evidence": record["evidence"],
            "reward": record["reward"],
            "reward_error": record["reward_error"],
            "ground_truth": record["ground_truth"],
            "teacher_context": text(record["teacher_prompt_ids"]),
        }
        for record in sorted(records, key=lambda record: record["uid"])
    ]


def write(samples: Iterable[dict[str, Any]], *, folder: str, step: int) -> Path:
    """Write `<folder>/<step>.jsonl`; a reader never sees half a file.

    Raises:
        OSError: the disk is full or the folder is not writable; verl raises it at the next dump or at the end.
    """
    path = Path(folder) / f"{step}.jsonl"
    files.write_lines(path, samples)
    return path
