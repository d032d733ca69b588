"""Tokenizer of the tiny world: byte-level BPE in which digits and operators stand alone, with the ChatML template.

Prompts are tokenised by `apply_chat_template` and nothing else, as verl does at run time.
"""

import random
from collections.abc import Iterator, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from recipe.trd.tiny_world.examples import Task, task_prompt
from recipe.trd.tiny_world.problems import draw_problem, inject_errors
from recipe.trd.tiny_world.world_config import WorldConfig

_PAD, _TURN_START, _TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Each digit, operator and separator is a piece of its own; a word takes along its leading space and closing mark.
_PIECES = Regex(r"[0-9]|[+\-=}\n]|, |\\boxed\{| ?[A-Za-z]+[:.]?")

# The corpus has few different pieces: merging ends, with every piece one token, long before either limit.
_NUM_CORPUS_PROBLEMS = 500
_MAX_VOCABULARY = 1024


def build_tokenizer(world: WorldConfig, seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on prompts and solutions of the world."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_VOCABULARY,
        special_tokens=[_PAD, _TURN_START, _TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(world, random.Random(f"{seed}/tokenizer")), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=_TURN_END, pad_token=_PAD, additional_special_tokens=[_TURN_START]
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def _corpus(world: WorldConfig, rng: random.Random) -> Iterator[str]:
    yield "system\nuser\nassistant\n"
    for index in range(_NUM_CORPUS_PROBLEMS):
        problem = draw_problem(world, rng, ())
        y_o, y_star = inject_errors(problem, index % 2, rng), problem.solution(index % 2)
        yield y_star
        for task in Task:
            yield task_prompt(task, problem, y_o=y_o, y_star=y_star)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of user messages with the generation prompt, one list a message."""
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    encoded = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, return_dict=True)
    assert isinstance(encoded, BatchEncoding)
    return encoded.data["input_ids"]


def response_ids(tokenizer: PreTrainedTokenizerBase, responses: Sequence[str]) -> list[list[int]]:
    """Token ids of responses, each closed by the end-of-turn token."""
    encoded = tokenizer(list(responses), add_special_tokens=False)["input_ids"]
    return [[*ids, tokenizer.eos_token_id] for ids in encoded]


def response_texts(tokenizer: PreTrainedTokenizerBase, responses: Sequence[Sequence[int]]) -> list[str]:
    """Texts of responses; the closing end-of-turn token is removed, anything else is kept."""
    eos = tokenizer.eos_token_id
    bodies = [list(ids[:-1]) if ids and ids[-1] == eos else list(ids) for ids in responses]
    return tokenizer.batch_decode(bodies, skip_special_tokens=False, clean_up_tokenization_spaces=False)
