"""Fitting a bridge with rollouts that are given: settings, prompts, what is held out and refused."""

import copy
import json

import pandas as pd
import pytest
import torch
import yaml
from rich.console import Console

from recipe.trd.config.paths import CONFIG_DIR
from recipe.trd.oprd import bridge, fitting
from recipe.trd.oprd.fit_config import FitConfig
from recipe.trd.oprd.fit_rollouts import read_prompts
from recipe.trd.oprd.paired_states import Sequences

CONFIG = CONFIG_DIR / "fit_bridge.yaml"


@pytest.fixture
def console():
    return Console(record=True, width=200)


@pytest.fixture
def make_config(tmp_path):
    def build(**changes):
        shipped = yaml.safe_load(CONFIG.read_text())
        values = {key: value for key, value in shipped.items() if key not in ("defaults", "hydra")}
        paths = {name: str(tmp_path / name) for name in ("student", "teacher", "out")}
        small = {"max_prompt_length": 100, "max_response_length": 20, "dtype": "float32", "device": "cpu", "rank": 2}
        return FitConfig(**{**values, **paths, "train_files": str(tmp_path / "train.parquet"), **small, **changes})

    return build


@pytest.fixture
def problems(tmp_path):
    table = pd.DataFrame({"prompt": [[{"role": "user", "content": f"Compute {n}-3"}] for n in range(40)]})
    table.to_parquet(tmp_path / "train.parquet")


@pytest.fixture
def pair(tmp_path, tokenizer, problems, make_model):
    """A student of 2 layers and a teacher of 3 with random weights and one tokenizer."""
    for seed, (role, width, depth) in enumerate((("student", 8, 2), ("teacher", 16, 3))):
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 128}
        make_model(tmp_path / role, hidden_size=width, num_layers=depth, seed=seed, **sizes)
        tokenizer.save_pretrained(tmp_path / role)


@pytest.fixture
def rollouts(monkeypatch):
    """Responses of four kinds of tokens, which both models embed alike up to a linear map."""

    def answer(config, prompts):
        generator = torch.Generator().manual_seed(config.seed)
        return [torch.randint(5, 9, (3 + index % 5,), generator=generator).tolist() for index in range(len(prompts))]

    monkeypatch.setattr(fitting, "roll_out", answer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_prompts": 1}, "num_prompts=1 must be at least 2"),
        ({"held_out_frac": 1.0}, r"held_out_frac=1.0 must be in \(0, 1\)"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"dtype": "fp8"}, "dtype='fp8' is not one of bfloat16"),
        ({"batch_tokens": 0}, "batch_tokens=0 must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(make_config, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


@pytest.mark.usefixtures("pair", "rollouts")
def test_bridge_is_fitted_reported_and_written(make_config, console, tmp_path):
    fitted = fitting.run(make_config(min_cosine=0.2), console)
    loaded = bridge.load(tmp_path / "out", device="cpu")
    assert loaded.teacher_layers == fitted.teacher_layers == (0, 2)
    assert loaded.held_out_cosine == fitted.held_out_cosine
    for got, expected in zip(loaded.projections, fitted.projections, strict=True):
        torch.testing.assert_close(vars(got), vars(expected))
    counts = loaded.provenance
    assert (counts["num_sequences"], counts["num_held_out_sequences"]) == (36, 4)
    assert counts["num_rows"] + counts["num_held_out_rows"] == sum(3 + index % 5 for index in range(40))
    assert counts["settings"]["rank"] == 2
    said = console.export_text()
    assert "40 prompts of 2000 that were asked for; 0 longer than 100 tokens left out" in said
    assert f"{fitted.held_out_cosine[1]:.3f}" in said
    again = fitting.run(make_config(min_cosine=0.2, batch_tokens=200, out=str(tmp_path / "again")), console)
    assert again.held_out_cosine == pytest.approx(fitted.held_out_cosine, abs=1e-5)


@pytest.mark.usefixtures("pair", "rollouts")
def test_maps_that_do_not_fit_are_shown_and_not_written(make_config, console, tmp_path):
    with pytest.raises(ValueError, match=r"held-out cosine .* in layer 1, .* below min_cosine=1.0") as error:
        fitting.run(make_config(min_cosine=1.0), console)
    assert "nothing was written" in str(error.value)
    assert "held-out cosine" in console.export_text()
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("pair", "rollouts")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 9}, r"rank=9 must be in 1..8"),
        ({"max_response_length": 29}, "max_prompt_length \\+ max_response_length = 129 .*takes 128: lower them"),
        ({"max_prompt_length": 3}, "0 of 40 prompts have at most max_prompt_length=3"),
        ({"num_prompts": 5}, "response tokens to fit on, and a student of width 8 needs 32 or more: raise num_prompts"),
        ({"max_rows": 31}, "31 tokens for the teacher's principal directions"),
        ({"prompt_key": "problem"}, "has no column prompt_key=problem, but prompt"),
        ({"teacher": "nobody/has-this"}, "teacher=nobody/has-this: no model can be read there"),
    ],
)
def test_what_cannot_work_is_refused(make_config, console, changes, message):
    with pytest.raises(ValueError, match=message):
        fitting.run(make_config(**changes), console)


@pytest.mark.usefixtures("pair", "rollouts")
def test_other_tokenizer_is_refused(make_config, console, tokenizer, tmp_path):
    path = tmp_path / "teacher" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    a, b = sorted(vocabulary)[5:7]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"different tokenizers .* choose a teacher of the student's family"):
        fitting.run(make_config(), console)


@pytest.mark.usefixtures("pair", "rollouts")
def test_the_end_of_a_turn_may_differ(make_config, console, tokenizer, tmp_path):
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|endoftext|>"
    other.save_pretrained(tmp_path / "teacher")
    fitting.run(make_config(), console)


@pytest.mark.usefixtures("pair")
def test_long_prompts_are_left_out_and_counted(make_config, console, tmp_path):
    contents = ["Compute 1-1", "x" * 300, "Compute 2-1"]
    table = pd.DataFrame({"prompt": [[{"role": "user", "content": content}] for content in contents]})
    table.to_parquet(tmp_path / "train.parquet")
    prompts = read_prompts(make_config(), console)
    assert len(prompts) == 2
    assert all(prompt.student == prompt.teacher for prompt in prompts)
    assert "1 longer than 100 tokens left out" in console.export_text()


def test_rollouts_are_held_out_whole_and_tokens_sampled_exactly(make_config):
    sequences = Sequences(
        student=[[index] for index in range(20)], teacher=[[index] for index in range(20)], num_positions=[3] * 20
    )
    config = make_config(held_out_frac=0.25, max_rows=7)
    parts = fitting.split(config, sequences)
    assert (len(parts.held_out), len(parts.kept)) == (5, 15)
    assert sorted(parts.held_out.student + parts.kept.student) == sequences.student
    assert (len(parts.sampled), int(parts.sampled.sum())) == (45, 7)
    again = fitting.split(config, sequences)
    assert again.kept == parts.kept
    assert (again.sampled == parts.sampled).all()
    few = fitting.split(make_config(held_out_frac=0.001), sequences.take([0, 1]))
    assert (len(few.held_out), len(few.kept)) == (1, 1)
