"""What exports are compared on, and how: texts of a run, log-probs, differences, and the verdict on them."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from transformers import Qwen3Config, Qwen3ForCausalLM

from recipe.trd.export import proof, texts
from recipe.trd.export.checkpoint import Checkpoint, NotProved

QUESTIONS = [f"Problem: {number}+{number + 1}=?" for number in range(6)]


def dumped(tokenizer, prompt):
    """A prompt as verl's dump has it."""
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
    return tokenizer.decode(ids, skip_special_tokens=True)


@pytest.fixture
def validated(tmp_path, tokenizer):
    """A checkpoint of step 7 of a run that was validated at steps 0 and 7."""
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    pd.DataFrame({"prompt": prompts}).to_parquet(tmp_path / "held_out.parquet")
    for step in (0, 7):
        rows = [
            {"input": dumped(tokenizer, prompt), "output": f"Your solution: {step}-{number}"}
            for number, prompt in enumerate(prompts)
        ]
        path = tmp_path / "validation" / f"{step}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = OmegaConf.create({"data": {"val_files": str(tmp_path / "held_out.parquet"), "prompt_key": "prompt"}})
    return Checkpoint(folder=tmp_path, world_size=1, step=7, run_dir=tmp_path, config=config)


def held_out(checkpoint, tokenizer, **options):
    return texts.held_out(checkpoint, tokenizer, **{"path": None, "num_texts": 32, "num_tokens": 2048, **options})


def test_texts_are_prompts_and_answers_of_the_run(validated, tokenizer):
    found = held_out(validated, tokenizer, num_texts=3, num_tokens=12)
    assert found.num_plain == 0
    assert [text.tokens[:2] for text in found.texts] == [tokenizer("Your solution: 7-0")["input_ids"][:2]] * 3
    assert [len(text.tokens) for text in found.texts] == [4, 4, 4]
    for text, question in zip(found.texts, QUESTIONS[::2], strict=True):
        asked = [{"role": "user", "content": question}]
        assert text.context == tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    every = held_out(validated, tokenizer)
    assert [tokenizer.decode(text.tokens) for text in every.texts] == [
        f"Your solution: 7-{number}{tokenizer.eos_token}" for number in range(6)
    ]
    assert every.num_tokens == sum(len(text.tokens) for text in every.texts)


def test_last_validation_stands_in_for_one_of_the_step(validated, tokenizer):
    assert held_out(replace(validated, step=5), tokenizer).source.endswith("7.jsonl")
    assert held_out(replace(validated, step=0), tokenizer).source.endswith("0.jsonl")


def test_prompts_that_are_in_no_file_are_counted(validated, tokenizer, tmp_path):
    (tmp_path / "held_out.parquet").unlink()
    found = held_out(validated, tokenizer)
    assert found.num_plain == len(QUESTIONS)
    assert (
        found.texts[0].context == tokenizer(dumped(tokenizer, [{"role": "user", "content": QUESTIONS[0]}]))["input_ids"]
    )


def test_text_that_is_given(validated, tokenizer, tmp_path):
    file = tmp_path / "given.txt"
    file.write_text("Problem: 12+34\n\na\nYour solution")
    ids = [tokenizer(line)["input_ids"] for line in ("Problem: 12+34", "Your solution")]
    assert [[*text.context, *text.tokens] for text in held_out(validated, tokenizer, path=file).texts] == ids
    file.write_text("a\n")
    with pytest.raises(ValueError, match="holds no text of two tokens or more"):
        held_out(validated, tokenizer, path=file)
    file = tmp_path / "given.jsonl"
    file.write_text('{"input": "x"}\n')
    with pytest.raises(ValueError, match="a line is no JSON object with the texts input and output"):
        held_out(validated, tokenizer, path=file)


def test_differences_are_those_of_two_distributions():
    first = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).log()
    second = torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.75, 0.0]]).log()
    found = proof.difference(first, second, torch.tensor([1, 0]))
    assert found.max == pytest.approx(2 * math.log(2))
    assert found.mean == pytest.approx(1.5 * math.log(2))
    assert found.kl == pytest.approx((0.25 * math.log(2) + 2 * math.log(2)) / 2)
    assert proof.difference(first, first, torch.tensor([1, 0])) == proof.Difference(max=0.0, mean=0.0, kl=0.0)


def test_log_probs_are_those_of_the_tokens_behind_the_context():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    model = Qwen3ForCausalLM(config).eval()
    many = [texts.Text(context=[5, 6, 7], tokens=[8, 9]), texts.Text(context=[1], tokens=[2])]
    found = proof.log_probs(model, many, device="cpu")
    with torch.no_grad():
        first = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 2:4]
        second = model(input_ids=torch.tensor([[1, 2]])).logits[0, :1]
    torch.testing.assert_close(found, torch.cat([first, second]).log_softmax(-1))
    model.lm_head.weight.data.fill_(math.inf)
    with pytest.raises(NotProved, match="values that are no numbers"):
        proof.log_probs(model, many, device="cpu")


def differences(exported=0.0, merged=None, trained=0.5, moved=0.5):
    pairs = {"exported": exported, "merged": merged, "trained": trained, "moved": moved}
    return proof.Differences(
        **{
            name: None if size is None else proof.Difference(max=size, mean=size / 10, kl=size**2 / 100)
            for name, size in pairs.items()
        }
    )


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (differences(exported=5e-4, merged=5e-4), None),
        (differences(exported=2e-3), "the exported model is not the trainer's .*allowed for float32: 0.001"),
        (differences(exported=0.5, moved=0.0), "it equals the base model: the adapters were lost"),
        (differences(merged=2e-3), "merging changed the model .* --adapter-only"),
        (differences(trained=0.0, moved=0.0), "the trainer's model equals the base model: .* --allow-unchanged"),
        (differences(exported=1e-4, trained=1.2e-4, moved=1.2e-4), "rounding to float32 changes the model"),
        (differences(trained=2e-4, moved=0.5e-4), "rounding to float32 changes the model"),
    ],
)
def test_verdicts(found, message):
    options = {"tolerance": proof.EXACT, "dtype": torch.float32}
    if message is None:
        proof.check(found, allow_unchanged=False, **options)
        return
    with pytest.raises(NotProved, match=message):
        proof.check(found, allow_unchanged=False, **options)


def test_what_is_unchanged_is_accepted_on_request():
    options = {"tolerance": proof.EXACT, "dtype": torch.float32}
    proof.check(differences(trained=0.0, moved=0.0), allow_unchanged=True, **options)
    with pytest.raises(NotProved, match="is not the trainer's"):
        proof.check(differences(exported=0.1), allow_unchanged=True, **options)
