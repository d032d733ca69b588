import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipe.trd.reports import provenance, run_summary

ROOT = Path(__file__).parents[4]


def write_lines(path: Path, rows: list[dict], *, cut: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + cut)


def validate(run_dir: Path, *, step: int, accuracies: dict[str, list[float]], cut: str = "") -> None:
    rows = [
        {"input": problem, "output": "o", "gts": "1", "score": -5.0, "acc": acc, "step": step, "uid": f"{step}_{i}"}
        for problem, samples in accuracies.items()
        for i, acc in enumerate(samples)
    ]
    write_lines(run_dir / "validation" / f"{step}.jsonl", rows, cut=cut)


def rollout(**values) -> dict:
    row = {"uid": "u", "step": 1, "x": "x", "y_o": "o", "y_r": "r", "trained_on": "y_r", "verdict": "accepted"}
    return {**row, "y_o_acc": 1.0, "y_r_acc": 1.0, "ground_truth": "7", **values}


def test_held_out_before_and_after_and_paired_difference(tmp_path):
    validate(tmp_path, step=0, accuracies={"a": [0], "b": [0], "c": [1], "d": [1]})
    validate(tmp_path, step=10, accuracies={"a": [1], "b": [0], "c": [0], "d": [0]})
    validate(tmp_path, step=9, accuracies={"a": [0]})
    validate(tmp_path, step=20, accuracies={"d": [1], "c": [0], "b": [1], "a": [1]})
    held_out = run_summary.summarise(tmp_path)["held_out"]
    assert held_out["first"] == {"step": 0, "mean": 0.5, "standard_error": 0.25, "num_problems": 4}
    assert held_out["last"]["step"] == 20
    assert held_out["last"]["mean"] == 0.75
    # Differences +1, +1, -1, 0: mean 1/4, squared deviations 9/16 + 9/16 + 25/16 + 1/16 = 44/16, sqrt(44/16 / 3 / 4)
    assert held_out["difference"]["mean"] == pytest.approx(0.25)
    assert held_out["difference"]["standard_error"] == pytest.approx(math.sqrt(44 / 16 / 12))


def test_several_samples_of_a_problem_count_as_one(tmp_path):
    validate(tmp_path, step=0, accuracies={"a": [1, 1, 1, 1], "b": [0, 0, 0, 0], "c": [1, 0, 1, 0]})
    first = run_summary.summarise(tmp_path)["held_out"]["first"]
    assert first == {"step": 0, "mean": 0.5, "standard_error": pytest.approx(0.28867513), "num_problems": 3}


def test_difference_is_over_the_problems_that_both_validations_have(tmp_path):
    validate(tmp_path, step=0, accuracies={"a": [0], "b": [0], "c": [0]})
    validate(tmp_path, step=5, accuracies={"a": [1], "b": [0]}, cut='{"input": "c", "acc')
    result = run_summary.summarise(tmp_path)
    assert result["held_out"]["difference"]["num_problems"] == 2
    assert result["held_out"]["difference"]["mean"] == 0.5
    assert result["damaged_lines"] == {"validation/5.jsonl": 1}


def test_validation_that_was_cut_off_at_once_is_not_the_last(tmp_path):
    validate(tmp_path, step=0, accuracies={"a": [0]})
    validate(tmp_path, step=5, accuracies={"a": [1]})
    validate(tmp_path, step=10, accuracies={}, cut='{"inp')
    assert run_summary.summarise(tmp_path)["held_out"]["last"]["step"] == 5


def test_scores_that_are_no_accuracies_are_not_called_so(tmp_path, capsys):
    for step, score in ((0, -1.0), (5, 1.0)):
        write_lines(tmp_path / "validation" / f"{step}.jsonl", [{"input": "a", "gts": "1", "score": score}])
    assert run_summary.report(tmp_path)["held_out"]["is_accuracy"] is False
    text = capsys.readouterr().out
    assert "Held-out score" in text
    assert "+2.0" in text
    assert "points" not in text


def test_accuracy_of_every_data_set_is_kept_when_there_are_several(tmp_path):
    names = ("val-core/openai/gsm8k/acc/mean@1", "val-core/aime/acc/mean@8", "val-core/aime/acc/best@8/mean")
    rows = [{"step": step, "data": dict.fromkeys(names, step / 10)} for step in (0, 5)]
    write_lines(tmp_path / "metrics.jsonl", rows)
    assert run_summary.summarise(tmp_path)["held_out_by_source"] == {"openai/gsm8k": [0.0, 0.5], "aime": [0.0, 0.5]}


def test_rewriting_compares_the_same_samples_before_and_after(tmp_path):
    rows = [
        rollout(y_o_acc=0.0),
        rollout(y_r_acc=0.0),
        rollout(),
        rollout(verdict="unfinished", trained_on="y_o", y_r_acc=None),
        rollout(verdict="failed", trained_on="none", y_r=None, y_r_acc=None, y_o_acc=0.0),
    ]
    write_lines(tmp_path / "rollouts" / "1.jsonl", rows)
    rewriting = run_summary.summarise(tmp_path)["rewriting"]
    assert rewriting["accept_rate"] == 0.6
    assert rewriting["verdicts"] == {"accepted": 3, "unfinished": 1, "failed": 1}
    assert (rewriting["num_graded"], rewriting["y_o_acc"], rewriting["y_r_acc"]) == (3, 2 / 3, 2 / 3)
    assert (rewriting["wrong_to_right"], rewriting["right_to_wrong"]) == (1, 1)


def test_examples_are_repairs_from_the_last_steps_then_other_rewrites(tmp_path):
    write_lines(tmp_path / "rollouts" / "9.jsonl", [rollout(step=9, x="old", y_o_acc=0.0)])
    rows = [
        rollout(step=10, x="not trained on", trained_on="y_o", verdict="overlong"),
        rollout(step=10, x="new", y_o_acc=0.0),
        rollout(step=10, x="new", y_o_acc=0.0),
        rollout(step=10, x="was right"),
        rollout(step=10, x="no y_r", y_r=None),
    ]
    write_lines(tmp_path / "rollouts" / "10.jsonl", rows)
    examples = run_summary.summarise(tmp_path)["examples"]
    assert [example["x"] for example in examples] == ["new", "old", "was right"]


def test_stages_add_up_without_counting_overlaps_twice(tmp_path):
    timings = {
        "step": 10.0,
        "gen": 6.0,
        "rewrite": 4.0,
        "teacher": 5.0,
        "update_actor": 3.0,
        "agent_loop/slowest/x": 99,
    }
    data = {f"timing_s/{name}": value for name, value in timings.items()}
    data |= {"perf/total_num_tokens": 500.0}
    rows = [{"step": 0, "data": {"val-core/a/acc/mean@1": 0.5}}, {"step": 1, "data": data}]
    write_lines(tmp_path / "metrics.jsonl", [*rows, {"step": 2, "data": data | {"timing_s/testing": 5.0}}])
    result = run_summary.summarise(tmp_path)
    expected = {"gen": 12.0, "teacher": 10.0, "rewrite": 8.0, "update_actor": 6.0, "testing": 5.0, "other": 2.0}
    assert result["seconds"] == {"startup": None, "total": 25.0, "stages": expected}
    rates = {"seconds_per_step": 10.0, "tokens_per_second": 50.0, "samples_per_second": None}
    assert result["throughput"] == rates
    assert (result["first_step"], result["last_step"]) == (1, 2)


def test_step_that_was_repeated_after_a_resume_counts_once(tmp_path):
    rows = [{"step": step, "data": {"timing_s/step": 3.0}} for step in (1, 2, 2)]
    write_lines(tmp_path / "metrics.jsonl", rows)
    assert run_summary.summarise(tmp_path)["seconds"]["total"] == 6.0


def test_verls_null_for_nan_is_left_out(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "data": {"timing_s/step": 3.0, "timing_s/gen": None}}])
    assert run_summary.summarise(tmp_path)["seconds"]["stages"] == {"other": 3.0}


def test_run_without_rewriting_has_a_page(tmp_path, capsys):
    validate(tmp_path, step=0, accuracies={"a": [0], "b": [1]})
    validate(tmp_path, step=2, accuracies={"a": [1], "b": [1]})
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "data": {"timing_s/step": 3.0, "timing_s/gen": 2.0}}])
    # verl's own dump of the training samples.
    write_lines(tmp_path / "rollouts" / "1.jsonl", [{"input": "i", "output": "o", "gts": "1", "score": 1.0, "step": 1}])
    provenance.write_provenance(tmp_path, OmegaConf.create({"trd": {"method": "grpo"}, "name": "${trd.method}"}))
    result = run_summary.report(tmp_path)
    assert (result["method"], result["rewriting"], result["examples"]) == ("grpo", None, [])
    assert json.loads((tmp_path / "summary.json").read_text()) == result
    text = capsys.readouterr().out
    assert "grpo, steps 1 to 1" in text
    assert "difference         +50.0 +/- 50.0 points" in text
    assert "Rewriting" not in text


def test_page_of_a_trd_run_shows_texts_as_they_are_and_fits(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [rollout(x="[bold]sum[/x] of 1..9", y_o="wrong\n" * 50 + "\\boxed{1}", y_o_acc=0.0)]
    write_lines(tmp_path / "rollouts" / "3.jsonl", rows)
    for step in (2, 10):
        (tmp_path / f"global_step_{step}").mkdir()
    run_summary.report(tmp_path)
    text = capsys.readouterr().out
    for part in ("[bold]sum[/x] of 1..9", "[... 43 lines ...]", "\\boxed{1}", "100.0% of 1 samples accepted"):
        assert part in text
    assert "global_step_10" in text
    assert "1 earlier" in text
    # The path of the folder is not wrapped, so that it can be copied.
    assert all(len(line) <= 80 for line in text.splitlines() if str(tmp_path) not in line)


def test_broken_files_are_counted_and_said(tmp_path, capsys):
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "data": {"timing_s/step": 1.0}}, {"step": "x"}], cut='{"st')
    (tmp_path / "config.yaml").write_text("trd: {method: [")
    (tmp_path / "versions.json").write_bytes(b'{"packages"\xff')
    write_lines(tmp_path / "rollouts" / "1.jsonl", [{"verdict": "accepted"}], cut='[1]\n{"uid"')
    result = run_summary.report(tmp_path)
    expected = {"metrics.jsonl": 2, "config.yaml": 1, "versions.json": 1, "rollouts/1.jsonl": 2}
    assert result["damaged_lines"] == expected
    assert result["missing_files"] == ["validation"]
    text = capsys.readouterr().out
    assert "metrics.jsonl: 2 unreadable lines" in text
    assert "Not there: validation" in text


@pytest.mark.parametrize(("exists", "code"), [(True, 0), (False, 2)])
def test_command_line(tmp_path, exists, code):
    run_dir = tmp_path if exists else tmp_path / "nowhere"
    command = [sys.executable, "-m", "recipe.trd.summary", str(run_dir)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert (run_dir / "summary.json").exists() is exists
