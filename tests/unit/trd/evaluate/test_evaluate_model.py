"""An evaluation whose samples are all there needs no engine: everything but sampling is checked by hand counts here."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from recipe.trd.evaluate import __main__ as command
from recipe.trd.evaluate import result, suites

TRUTHS = ["1", "2", "3"]
# Answers of the samples; None is a response without a box.
ANSWERS = [["1", "1", "1.0", "5"], ["7", "7", "2", None], ["8", "9", "4", None]]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A model, its base, a problem set, and where the command runs."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("model", 1.0), ("base", 0.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((2, 2), value)}, tmp_path / name / "model.safetensors")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"problem {number}"}],
            "data_source": "s",
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": truth},
            "extra_info": {"index": number},
        }
        for number, truth in enumerate(TRUTHS)
    ]
    (tmp_path / "data" / "small").mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(tmp_path / "data" / "small" / "test.parquet")
    return tmp_path


def sampled(folder, answers, *, name="small"):
    """Write samples as the engine would."""
    problems = suites.load(name, Path("data/small/test.parquet")).problems
    rows = []
    for problem, texts in zip(problems, answers, strict=True):
        for number, answer in enumerate(texts):
            text = "none" if answer is None else f"so \\boxed{{{answer}}}"
            cut = answer is None
            rows.append(
                {
                    "problem": problem.id,
                    "sample": number,
                    "finish_reason": "length" if cut else "stop",
                    "num_tokens": 100 if cut else 10,
                    "num_prompt_tokens": 5,
                    "text": text,
                    "session": number // 2,
                    "elapsed_s": 1.0 + number,
                }
            )
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sessions = [{"session": session, "num_devices": 1 + session} for session in (0, 1)]
    (folder / "sessions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sessions))


def evaluate(folder, *extra, model="model"):
    arguments = [model, "--suite", "small", "-n", "4", "--out", str(folder), "--grade-workers", "1", *extra]
    return command.main(arguments)


def test_numbers_are_those_of_a_count_by_hand(folders, capsys):
    out = folders / "out"
    sampled(out, ANSWERS)
    assert evaluate(out, "--base", "base", "--k", "1", "2", "4") == 0
    content = result.read(out)
    (part,) = content["sets"]
    metrics = {name: estimate["value"] for name, estimate in part["metrics"].items()}
    assert metrics["avg"] == metrics["pass@1"] == pytest.approx((3 / 4 + 1 / 4 + 0) / 3)
    # Of 6 pairs: all; 3 of 6; none.
    assert metrics["pass@2"] == pytest.approx((1 + 3 / 6 + 0) / 3)
    assert metrics["pass@4"] == pytest.approx(2 / 3)
    # 3 to 1 right; 2 to 1 wrong; nothing right.
    assert metrics["maj@4"] == pytest.approx(1 / 3)
    assert part["truncated_frac"] == pytest.approx(2 / 12)
    expected = {"total": 300, "mean": 25.0, "p10": 10.0, "p50": 10.0, "p90": 91.0, "max": 100.0}
    assert part["response_tokens"] == pytest.approx(expected)
    assert part["no_answer_frac"] == pytest.approx(2 / 12)
    assert [counts["right"] for counts in part["problems"].values()] == [3, 1, 0]
    # Sessions end after 2 and 4 seconds, on one and on two devices.
    assert (content["seconds"], content["device_hours"]) == (6.0, pytest.approx((2 + 2 * 4) / 3600))
    assert content["weights"]["base"]["equal"] is False
    graded = [json.loads(line) for line in (out / "grades" / "small.jsonl").read_text().splitlines()]
    assert sum(row["correct"] for row in graded) == 4
    text = capsys.readouterr().out
    assert "12 of 12 samples are there" in text
    assert "33.3 [" in text
    assert "17% of the responses were cut" in text


def test_tables_are_written_in_three_formats(folders):
    out = folders / "out"
    sampled(out, ANSWERS)
    assert evaluate(out) == 0
    assert "| small | 3 | 33.3 [" in (out / "table.md").read_text()
    assert "\\begin{tabular}" in (out / "table.tex").read_text()
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert [row["metric"] for row in rows] == ["avg", "pass@2", "pass@4", "maj@2", "maj@4"]
    assert float(rows[0]["value"]) == pytest.approx(1 / 3, abs=1e-12)


def test_weights_of_the_base_are_said_loudly_everywhere(folders, capsys):
    out = folders / "out"
    sampled(out, ANSWERS)
    assert evaluate(out, "--base", "model") == 0
    assert "EQUAL TO BASE" in capsys.readouterr().out
    for name in ("table.md", "table.tex"):
        text = (out / name).read_text()
        assert "WARNING: the weights of model are EQUAL TO BASE model" in text
        assert text.count("EQUAL TO BASE") == 2
    assert "True" in (out / "table.csv").read_text()


def test_paired_comparison_with_a_baseline(folders, capsys):
    sampled(folders / "old", [["5", "5", "5", "5"], ["2", "7", "7", "7"], ["8", "9", "4", None]])
    assert evaluate(folders / "old", model="base") == 0
    sampled(folders / "new", ANSWERS)
    assert evaluate(folders / "new", "--baseline", "old") == 0
    average = result.read(folders / "new")["baseline"]["differences"]["small"]["avg"]
    # +3, 0 and 0 of 4 samples: either sign of the one difference is as likely.
    assert average["value"] == pytest.approx(3 / 12)
    assert (average["p_value"], average["num_better"], average["num_worse"]) == (1.0, 1, 0)
    assert average["low"] <= average["value"] <= average["high"]
    assert "change of avg" in (folders / "new" / "table.md").read_text()
    assert "SAME WEIGHTS" not in capsys.readouterr().out


def test_baseline_with_the_same_weights_or_another_sampling_is_said(folders, capsys):
    sampled(folders / "old", ANSWERS)
    assert evaluate(folders / "old", "--temperature", "1") == 0
    sampled(folders / "new", ANSWERS)
    assert evaluate(folders / "new", "--baseline", "old") == 0
    text = capsys.readouterr().out
    assert "SAME WEIGHTS" in text
    assert "temperature 1.0 -> 0.6" in text


@pytest.mark.parametrize("change", ["problems", "samples"])
def test_baseline_that_cannot_be_paired_is_refused_before_anything_else(folders, capsys, change):
    sampled(folders / "old", ANSWERS)
    assert evaluate(folders / "old") == 0
    extra = ["--limit", "2"] if change == "problems" else ["-n", "8"]
    assert evaluate(folders / "new", "--baseline", "old", *extra) == 2
    expected = "not asked the same problems" if change == "problems" else "give both the same --num-samples"
    assert expected in capsys.readouterr().err
    assert not (folders / "new").exists()


def test_several_sets_have_a_mean_of_their_own(folders):
    (folders / "data" / "twin.parquet").write_bytes((folders / "data" / "small" / "test.parquet").read_bytes())
    out = folders / "out"
    sampled(out, ANSWERS)
    rows = (out / "samples" / "small.jsonl").read_text()
    (out / "samples" / "twin.jsonl").write_text(rows.replace("boxed{5}", "boxed{1}"))
    assert evaluate(out, "--data", "data/twin.parquet") == 0
    content = result.read(out)
    assert content["mean"]["metrics"]["avg"]["value"] == pytest.approx((4 / 12 + 5 / 12) / 2)
    assert "| mean of sets |" in (out / "table.md").read_text()


def test_folder_of_other_settings_is_refused_and_left_alone(folders, capsys):
    out = folders / "out"
    sampled(out, ANSWERS)
    assert evaluate(out) == 0
    before = (out / "result.json").read_text()
    assert evaluate(out, "--temperature", "0.7") == 2
    assert "sampling.temperature: 0.6 -> 0.7" in capsys.readouterr().err
    assert evaluate(out, model="base") == 2
    assert "weights.model" in capsys.readouterr().err
    assert (out / "result.json").read_text() == before


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--k", "8"], "k samples need as many"),
        (["--engine", "dtype"], "NAME=VALUE"),
        (["--chat-template-kwargs", "[1]"], "JSON object"),
        (["--chat-template", "no.jinja"], "no such file"),
        (["--limit", "0"], "at least one problem"),
        (["--baseline", "nowhere"], "no evaluation was finished there"),
        (["--adapter", "base"], "holds no adapter_model.safetensors"),
    ],
)
def test_arguments_that_cannot_work_are_refused_in_one_line(folders, capsys, extra, message):
    assert evaluate(folders / "out", *extra) == 2
    error = capsys.readouterr().err
    assert error.startswith("cannot evaluate: ")
    assert message in error


def test_same_command_finds_its_folder_again():
    options = command._parser().parse_args(["checkpoints/run-1/global_step_20", "--suite", "math", "--suite", "gsm8k"])
    assert str(command._default_folder(options)) == "outputs/evaluation/checkpoints-run-1-global_step_20_math+gsm8k"
