import random

import pytest
from transformers import AutoTokenizer

from recipe.trd.tiny_world.examples import Task, task_prompt
from recipe.trd.tiny_world.problems import draw_problem, inject_errors
from recipe.trd.tiny_world.tokenizer import prompt_ids, response_ids, response_texts


@pytest.fixture(scope="module")
def texts(config):
    """Prompts of every task and a wrong solution, for 50 problems."""
    rng = random.Random(0)
    prompts, solutions = [], []
    for index in range(50):
        problem = draw_problem(config.world, rng, ())
        y_o = inject_errors(problem, index % 2, rng)
        prompts += [task_prompt(task, problem, y_o=y_o, y_star=problem.solution(0)) for task in Task]
        solutions.append(y_o)
    return prompts, solutions


def test_prompt_is_the_chat_template_without_system_turn(tokenizer, texts):
    for prompt, ids in zip(texts[0], prompt_ids(tokenizer, texts[0]), strict=True):
        assert tokenizer.decode(ids) == f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def test_response_ends_with_eos_and_reads_back(tokenizer, texts):
    ids = response_ids(tokenizer, texts[1])
    assert all(row[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>") for row in ids)
    assert response_texts(tokenizer, ids) == texts[1]


def test_response_text_keeps_a_response_without_eos(tokenizer):
    ids = response_ids(tokenizer, ["1+1=2"])[0]
    assert response_texts(tokenizer, [ids[:-2], []]) == ["1+1=", ""]


def test_digits_operators_and_box_are_single_tokens(tokenizer):
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("29-6=23, \\boxed{23}")["input_ids"])
    assert len(pieces) == len(["2", "9", "-", "6", "=", "2", "3", ", ", "\\boxed{", "2", "3", "}"])


def test_special_tokens(tokenizer):
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert len(tokenizer) % 16 != 0  # otherwise no test here would notice a missing padding of the vocabulary


def test_any_text_can_be_encoded(tokenizer):
    text = "Zażółć π 🙂 <tag>\t\\frac{1}{2}"
    assert response_texts(tokenizer, response_ids(tokenizer, [text])) == [text]


def test_saved_tokenizer_is_the_same_beside_a_qwen3_config(tokenizer, texts, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert prompt_ids(loaded, texts[0]) == prompt_ids(tokenizer, texts[0])
    assert response_ids(loaded, texts[1]) == response_ids(tokenizer, texts[1])
    assert loaded.eos_token_id == tokenizer.eos_token_id
