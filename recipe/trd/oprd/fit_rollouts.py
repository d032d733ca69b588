"""Rollouts that a bridge is fitted on: prompts under both chat templates, and the student's responses from vLLM."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from transformers import AutoTokenizer

from recipe.trd.oprd.fit_config import FitConfig
from recipe.trd.rewrite import teacher_prompt
from recipe.trd.rewrite.tokenizers import check_same_tokens


@dataclass(frozen=True)
class PairedPrompt:
    """Token ids of one prompt under both chat templates."""

    student: list[int]
    teacher: list[int]


def read_prompts(config: FitConfig, console: Console) -> list[PairedPrompt]:
    """Prompts drawn from the training data, as both models read them.

    Raises:
        ValueError: tokenizers differ, the column is missing, or too few prompts are short enough.
    """
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (config.student, config.teacher)]
    # The end of a turn may differ, as between a base student and its teacher: hidden states are compared, not ids.
    check_same_tokens(*tokenizers, student_path=config.student, teacher_path=config.teacher, eos_remap=True)
    files = [config.train_files] if isinstance(config.train_files, str) else list(config.train_files)
    tables = [pd.read_parquet(Path(file).expanduser()) for file in files]
    for file, frame in zip(files, tables, strict=True):
        if config.prompt_key not in frame:
            raise ValueError(f"{file} has no column prompt_key={config.prompt_key}, but {', '.join(frame.columns)}")
    conversations = [conversation for frame in tables for conversation in frame[config.prompt_key]]
    prompts: list[PairedPrompt] = []
    num_long = 0
    for index in np.random.default_rng(config.seed).permutation(len(conversations)):
        ids = [
            teacher_prompt.chat_ids(tokenizer, conversations[index], config.apply_chat_template_kwargs or {})
            for tokenizer in tokenizers
        ]
        if max(map(len, ids)) > config.max_prompt_length:
            num_long += 1
            continue
        prompts.append(PairedPrompt(*ids))
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
