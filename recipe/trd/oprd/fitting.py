"""First stage of OPRD-Bridge; the command is `python -m recipe.trd.fit_bridge`.

The student answers prompts; both models read the answers, each under its own chat template; then the teacher's hidden
states are reduced to a few principal directions, and the student's are mapped onto them. Keys:
`configs/fit_bridge.yaml`; result: bridge.py; states: paired_states.py; maths: projection_fit.py.

Source: OPRD, arXiv 2606.06021, Sec. 3.3 and Alg. 1.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from recipe.trd.oprd.bridge import Bridge, ModelFacts
    from recipe.trd.oprd.paired_states import Sequences, States

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


@dataclass(frozen=True)
class Prompt:
    """One problem under both chat templates, token ids."""

    student: list[int]
    teacher: list[int]


def run(config: FitConfig, console: Console) -> "Bridge":
    """All steps; imports torch, transformers and vLLM.

    Raises:
        ValueError: the pair, the data or the fit will not do; nothing was written.
    """
    from recipe.trd.oprd import bridge, paired_states, projection_fit

    student, teacher = _models(config)
    projection_fit.check_rank(config.rank, student_size=student.hidden_size, teacher_size=teacher.hidden_size)
    prompts = read_prompts(config, console)
    responses = roll_out(config, [prompt.student for prompt in prompts])
    num_tokens = [len(response) for response in responses]
    console.print(f"{sum(num_tokens)} response tokens, {max(num_tokens)} at most in one", highlight=False)
    sequences = paired_states.Sequences(
        student=[[*prompt.student, *response] for prompt, response in zip(prompts, responses, strict=True)],
        teacher=[[*prompt.teacher, *response] for prompt, response in zip(prompts, responses, strict=True)],
        num_rows=[min(num, config.num_positions) for num in num_tokens],
    )
    fitted = fit(config, sequences, student=student, teacher=teacher, console=console)
    console.print(table(fitted))
    check_fit(fitted, min_cosine=config.min_cosine)
    bridge.save(config.out, fitted)
    console.print(f"bridge of rank {fitted.rank}: {Path(config.out).expanduser().resolve()}", highlight=False)
    return fitted


def _models(config: FitConfig) -> list["ModelFacts"]:
    """What there is to know of student and teacher before they are loaded."""
    from transformers import AutoConfig

    from recipe.trd.oprd import bridge

    found = []
    for role in ("student", "teacher"):
        path = getattr(config, role)
        try:
            model_config = AutoConfig.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{role}={path}: no model can be read there: {error}") from error
        longest = int(getattr(model_config.get_text_config(), "max_position_embeddings", None) or 2**31)
        if config.max_prompt_length + config.max_response_length > longest:
            raise ValueError(
                f"max_prompt_length + max_response_length = {config.max_prompt_length + config.max_response_length} "
                f"tokens, and {role}={path} takes {longest}: lower them"
            )
        found.append(bridge.facts(model_config, path=path))
    return found


def read_prompts(config: FitConfig, console: Console) -> list[Prompt]:
    """Prompts drawn from the data, as both models read them.

    Raises:
        ValueError: tokenizers differ, the column is missing, or too few prompts are short enough.
    """
    import numpy as np
    import pandas as pd
    from transformers import AutoTokenizer

    from recipe.trd.rewrite import contexts

    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (config.student, config.teacher)]
    _check_same_tokens(config, *tokenizers)
    files = [config.train_files] if isinstance(config.train_files, str) else list(config.train_files)
    tables = [pd.read_parquet(Path(file).expanduser()) for file in files]
    for file, frame in zip(files, tables, strict=True):
        if config.prompt_key not in frame:
            raise ValueError(f"{file} has no column prompt_key={config.prompt_key}, but {', '.join(frame.columns)}")
    conversations = [conversation for frame in tables for conversation in frame[config.prompt_key]]
    prompts: list[Prompt] = []
    num_long = 0
    for index in np.random.default_rng(config.seed).permutation(len(conversations)):
        ids = [
            contexts.chat_ids(tokenizer, conversations[index], config.apply_chat_template_kwargs or {})
            for tokenizer in tokenizers
        ]
        if max(map(len, ids)) > config.max_prompt_length:
            num_long += 1
            continue
        prompts.append(Prompt(*ids))
        if len(prompts) == config.num_prompts:
            break
    if len(prompts) < 2:
        raise ValueError(
            f"{len(prompts)} of {len(conversations)} prompts have at most max_prompt_length={config.max_prompt_length} "
            "tokens: raise it, or give other data"
        )
    asked = "" if len(prompts) == config.num_prompts else f" of {config.num_prompts} that were asked for"
    console.print(
        f"{len(prompts)} prompts{asked}; {num_long} longer than {config.max_prompt_length} tokens left out",
        highlight=False,
    )
    return prompts


def _check_same_tokens(
    config: FitConfig, student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase"
) -> None:
    """States are compared at the same response ids, which have to mean the same to both."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        different = next(token for token in {**ours, **theirs} if ours.get(token) != theirs.get(token))
        raise ValueError(
            f"student={config.student} and teacher={config.teacher} have different tokenizers (for one, {different!r} "
            f"is {ours.get(different)} for the student and {theirs.get(different)} for the teacher); a bridge compares "
            "states token by token: choose a teacher of the student's family"
        )


def roll_out(config: FitConfig, prompts: Sequence[list[int]]) -> list[list[int]]:
    """One sampled response for each prompt, token ids with the one that ends it, from vLLM.

    The engine runs in a process of its own and ends with this function, so that its device is free again.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from tqdm import tqdm
    from vllm import LLM, SamplingParams, TokensPrompt

    settings = {
        "dtype": config.dtype,
        "max_model_len": max(map(len, prompts)) + config.max_response_length,
        "seed": config.seed,
    }
    llm = LLM(model=config.student, **{**settings, **(config.vllm or {})})
    sampling = SamplingParams(temperature=config.temperature, max_tokens=config.max_response_length, detokenize=False)
    try:
        outputs = llm.generate(
            [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
            # No seed of its own for each: on CPU vLLM 0.28 cannot cut the prefill of a seeded request.
            sampling,
            use_tqdm=partial(tqdm, mininterval=0.1 if sys.stderr.isatty() else 30),
        )
    finally:
        llm.llm_engine.engine_core.shutdown()
    return [list(output.outputs[0].token_ids) for output in outputs]


@dataclass(frozen=True)
class Split:
    """Rollouts to fit on, rollouts to judge by, and which tokens of the former the teacher's covariance is over."""

    kept: "Sequences"
    held_out: "Sequences"
    sampled: "torch.Tensor"
    """bool [tokens of kept]."""

    def counts(self) -> dict[str, int]:
        """Numbers for the card."""
        return {
            "num_sequences": len(self.kept),
            "num_rows": sum(self.kept.num_rows),
            "num_sampled_rows": int(self.sampled.sum()),
            "num_held_out_sequences": len(self.held_out),
            "num_held_out_rows": sum(self.held_out.num_rows),
        }


def split(config: FitConfig, sequences: "Sequences") -> Split:
    """Whole rollouts are held out: tokens of one rollout are too much alike."""
    import torch

    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(sequences), generator=generator).tolist()
    num_held_out = min(max(1, round(config.held_out_frac * len(order))), len(order) - 1)
    kept = sequences.take(order[num_held_out:])
    sampled = torch.zeros(sum(kept.num_rows), dtype=torch.bool)
    sampled[torch.randperm(len(sampled), generator=generator)[: config.max_rows]] = True
    return Split(kept, sequences.take(order[:num_held_out]), sampled)


def fit(
    config: FitConfig, sequences: "Sequences", *, student: "ModelFacts", teacher: "ModelFacts", console: Console
) -> "Bridge":
    """Maps for every layer of the student, and how well they fit on rollouts that were held out.

    Raises:
        ValueError: too few tokens, or hidden states that are not finite.
    """
    import torch

    from recipe.trd.oprd import bridge, paired_states, projection_fit

    parts = split(config, sequences)
    sizes = {"student_size": student.hidden_size, "teacher_size": teacher.hidden_size}
    projection_fit.check_num_rows(
        config.rank,
        student_size=student.hidden_size,
        num_rows=len(parts.sampled),
        num_sampled=int(parts.sampled.sum()),
    )
    device = torch.device(config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    layers = bridge.layer_map(student.num_layers, teacher.num_layers)
    load = partial(paired_states.load_model, dtype=getattr(torch, config.dtype), device=device)
    read = partial(
        paired_states.paired_states,
        load(config.student),
        load(config.teacher),
        teacher_layers=layers,
        batch_tokens=config.batch_tokens,
    )
    moments = [projection_fit.Moments(**sizes, device=device) for _ in layers]
    sampled = [part.to(device) for part in parts.sampled.split(parts.kept.num_rows)]
    cosine = torch.zeros(len(layers), dtype=torch.float64)
    with Progress(console=console) as progress:
        for states in _tracked(progress, "reading", read(parts.kept), len(parts.kept)):
            rows = torch.cat([sampled[index] for index in states.sequences])
            for layer, sums in enumerate(moments):
                sums.add(student=states.student[layer], teacher=states.teacher[layer], sampled=rows)
        maps = [projection_fit.fit(sums, rank=config.rank) for sums in progress.track(moments, description="fitting")]
        for states in _tracked(progress, "checking", read(parts.held_out), len(parts.held_out)):
            for layer, (projection, _) in enumerate(maps):
                ours, theirs = states.student[layer], states.teacher[layer]
                cosine[layer] += projection_fit.cosines(projection, student=ours, teacher=theirs).sum().cpu()
    return bridge.Bridge(
        projections=tuple(projection for projection, _ in maps),
        teacher_layers=layers,
        student=student,
        teacher=teacher,
        explained_variance=tuple(explained for _, explained in maps),
        held_out_cosine=tuple((cosine / sum(parts.held_out.num_rows)).tolist()),
        provenance=parts.counts() | {"settings": asdict(config), "versions": _versions()},
    )


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("verl-trd", "torch", "transformers")}


def _tracked(progress: Progress, what: str, batches: Iterator["States"], total: int) -> Iterator["States"]:
    """The same batches, with a bar that counts their sequences; a line every tenth where there is no terminal."""
    task = progress.add_task(what, total=total)
    done = 0
    for states in batches:
        yield states
        before, done = done, done + len(states.sequences)
        progress.update(task, completed=done)
        if not progress.console.is_terminal and 10 * done // total > 10 * before // total:
            progress.console.print(f"{what}: {done} of {total} rollouts", highlight=False)


def table(fitted: "Bridge") -> Table:
    """How well every layer fits; layers counted from 1."""
    columns = Table("student's layer", "teacher's layer", "explained variance", "held-out cosine")
    rows = zip(fitted.teacher_layers, fitted.explained_variance, fitted.held_out_cosine, strict=True)
    for layer, (teacher_layer, explained, cosine) in enumerate(rows, start=1):
        columns.add_row(str(layer), str(teacher_layer + 1), f"{explained:.3f}", f"{cosine:.3f}")
    return columns


def check_fit(fitted: "Bridge", *, min_cosine: float) -> None:
    """Refuse maps that say next to nothing about the teacher: training on them would move the student to noise.

    Raises:
        ValueError: the message names the layers.
    """
    bad = {layer: cosine for layer, cosine in enumerate(fitted.held_out_cosine, start=1) if not cosine >= min_cosine}
    if bad:
        found = ", ".join(f"{cosine:.3f} in layer {layer}" for layer, cosine in bad.items())
        raise ValueError(
            f"held-out cosine {found}, below min_cosine={min_cosine} (maps that fit reach 0.9, arbitrary ones 0.1): "
            "nothing was written; give more prompts (num_prompts), another rank (4 to 16), or a teacher nearer to the "
            "student"
        )
