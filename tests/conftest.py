"""Environment of every test process, and the fixtures that several test folders share."""

import logging
import os

import pytest

# Before anything imports verl, transformers or tokenizers. A test that wants another platform starts a process.
os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Triton decides when it is imported whether its own functions are compiled or interpreted. Here they are interpreted,
# on a CPU; processes that a test starts decide for themselves.
os.environ["TRITON_INTERPRET"] = "1"
import triton

del os.environ["TRITON_INTERPRET"]
triton.knobs.propagate_env = False
triton.knobs.runtime.interpret = True

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = ("system\nuser\nassistant\n", "Problem: 12+34=46 so the answer is \\boxed{46}.", "Your solution: 7-5=2")


@pytest.fixture(autouse=True)
def our_loggers_speak():
    """Libraries that set up logging for their own sake when a test imports them switch off loggers that exist."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("recipe", "verl_ext"):
            logging.getLogger(name).disabled = False


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE with a few merges and the ChatML template: any text survives, neighbouring tokens can merge."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    built = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    built.chat_template = CHATML
    return built
