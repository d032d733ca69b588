"""Held-out text as token ids: prompts of the last validation with the student's responses, or a file of the user."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerBase

from recipe.trd.export.checkpoint import Checkpoint
from recipe.trd.rewrite import teacher_prompt
from verl_ext.runtime.files import parse_lines


@dataclass(frozen=True)
class Text:
    """A context and the tokens after it whose log-probs are compared."""

    context: list[int]
    """One token or more."""
    tokens: list[int]


@dataclass(frozen=True)
class Texts:
    """What the models are compared on."""

    texts: list[Text]
    source: str
    """Where it comes from, for the report."""
    num_plain: int = 0
    """Prompts that are in no validation file: their plain text is used, without the tokens of the chat template."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are compared."""
        return sum(len(text.tokens) for text in self.texts)


def held_out(
    checkpoint: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    *,
    path: Path | None,
    num_texts: int,
    num_tokens: int,
) -> Texts:
    """Texts to compare models on, evenly taken from all there are.

    Args:
        checkpoint: its run's last validation is taken: the prompts, and what the student answered.
        tokenizer: the student's.
        path: of a text file, every line of which is a text, or of JSON lines with `input` and `output`, instead.
        num_texts: most texts.
        num_tokens: most tokens in all of them together.

    Raises:
        ValueError: there is no text.
    """
    file = path or _validation(checkpoint)
    try:
        lines = _lines(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as text: {error}") from error
    taken = [lines[index * len(lines) // num_texts] for index in range(num_texts)] if len(lines) > num_texts else lines
    most = max(1, num_tokens // max(1, len(taken)))
    if file.suffix == ".jsonl":
        prompts = _prompts(checkpoint, tokenizer)
        made = [_response_text(sample, prompts, tokenizer) for sample in map(_dumped_sample, taken)]
        num_plain = sum(plain for _, plain in made)
        texts = [Text(text.context, text.tokens[:most]) for text, _ in made]
    else:
        num_plain = 0
        ids = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in taken]
        texts = [Text(line[:1], line[1 : 1 + most]) for line in ids]
    texts = [text for text in texts if text.context and text.tokens]
    if not texts:
        raise ValueError(f"{file} holds no text of two tokens or more: give another with --text")
    return Texts(texts, source=str(file), num_plain=num_plain)


def _validation(checkpoint: Checkpoint) -> Path:
    """The dump of the checkpoint's step, or the last one there is."""
    folder = checkpoint.run_dir / "validation" if checkpoint.run_dir else None
    steps = {int(file.stem): file for file in folder.glob("*.jsonl") if file.stem.isdigit()} if folder else {}
    if not steps:
        raise ValueError(
            f"no validation of the run lies around {checkpoint.folder} (<run>/validation/<step>.jsonl): give --text "
            "FILE, with texts like those that it was trained on, a line each"
        )
    return steps.get(checkpoint.step if checkpoint.step is not None else -1, steps[max(steps)])


def _lines(file: Path) -> list[Any]:
    """Lines that are not empty: of JSON lines the objects, or the text of a line that holds none."""
    if file.suffix != ".jsonl":
        return [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    return [content for _, content in parse_lines(file) if isinstance(content, dict) or content.strip()]


def _dumped_sample(content: dict[str, Any] | str) -> Mapping[str, Any]:
    if isinstance(content, dict) and all(isinstance(content.get(name), str) for name in ("input", "output")):
        return content
    shown = json.dumps(content, ensure_ascii=False) if isinstance(content, dict) else content.rstrip("\n")
    raise ValueError(f"a line is no JSON object with the texts input and output: {shown[:80]!r}")


def _response_text(
    sample: Mapping[str, Any], prompts: Mapping[str, Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> tuple[Text, bool]:
    """A text, and whether its prompt is in no validation file."""
    context = prompts.get(sample["input"])
    ids = tokenizer(sample["output"], add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    plain = tokenizer(sample["input"], add_special_tokens=False)["input_ids"] if context is None else context
    return Text(list(plain), [*ids, *end]), context is None


def _prompts(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Token ids of the validation files' prompts by the text that verl's dump has of them."""
    data = checkpoint.setting("data")
    files = [] if data is None or data.get("val_files") is None else data.val_files
    arguments = OmegaConf.to_container(data.get("apply_chat_template_kwargs") or OmegaConf.create()) if files else {}
    assert isinstance(arguments, dict)
    prompts = {}
    for file in [files] if isinstance(files, str) else files:
        if not Path(file).expanduser().is_file():
            continue
        for messages in pd.read_parquet(file, columns=[data.prompt_key])[data.prompt_key]:
            ids = teacher_prompt.chat_ids(tokenizer, list(messages), arguments)
            prompts[str(tokenizer.decode(ids, skip_special_tokens=True))] = ids
    return prompts
