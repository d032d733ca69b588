import csv
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipe.trd import compare
from recipe.trd.evaluate import result


def write_lines(path: Path, rows: list[dict], *, cut: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + cut)


def evaluation(folder: Path, right: dict[str, int], *, weights: str = "a" * 64, num: int = 4, **sampling) -> Path:
    """A finished evaluation with these right samples of each problem."""
    problems = {name: {"samples": num, "right": c, "wrong_votes": [num - c] * (c < num)} for name, c in right.items()}
    part = {
        "name": "small",
        "num_problems": len(problems),
        "num_samples": num,
        **result.estimates([list(problems.values())], ks=[2, 4], seed=0),
        "truncated_frac": 0.0,
        "failed_grades": {},
        "response_tokens": {"mean": 12.0},
        "problems": problems,
    }
    used = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 64, **sampling}
    content = {
        "model": str(folder),
        "weights": {"model": weights, "adapter": None, "base": None},
        "settings": {"sampling": used, "chat": {}},
        "ks": [2, 4],
        "sets": [part],
        "mean": None,
        "tokens": {"prompt": 100, "response": 900},
        "seconds": 7200.0,
        "device_hours": 16.0,
        "commit": "0123456789abcdef",
    }
    folder.mkdir(parents=True)
    (folder / result.FILE).write_text(json.dumps(content))
    return folder


def training(folder: Path, validations: dict[int, dict[str, list[float]]], *, config: dict | None = None) -> Path:
    for step, problems in validations.items():
        rows = [{"input": name, "gts": "1", "acc": acc} for name, accs in problems.items() for acc in accs]
        write_lines(folder / "validation" / f"{step}.jsonl", rows)
    steps = [(1, 100.0), (2, 100.0), (2, 300.0)]
    rows = [{"step": n, "data": {"timing_s/step": 1800.0, "perf/total_num_tokens": tokens}} for n, tokens in steps]
    write_lines(folder / "metrics.jsonl", rows)
    config = {"trd": {"method": "trd_opd"}, **(config or {})}
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    write_lines(folder / "rollouts" / "1.jsonl", [{"verdict": "accepted", "y_o_length": 7, "y_r_length": 5}] * 2)
    return folder


CLUSTER = {
    "trainer": {"nnodes": 1, "n_gpus_per_node": 4},
    "distillation": {"enabled": True, "nnodes": 1, "n_gpus_per_node": 4},
    "reward": {"num_workers": 1, "reward_model": {"enable": False, "enable_resource_pool": False}},
    "transfer_queue": {"backend": {"SimpleStorage": {"num_data_storage_units": 1}}},
    "actor_rollout_ref": {"rollout": {"agent": {"num_workers": 1}}},
}


def run(*arguments) -> int:
    return compare.main([str(argument) for argument in arguments])


def test_evaluations_stand_side_by_side_with_their_paired_difference(tmp_path, capsys):
    base = evaluation(tmp_path / "base", {"p": 0, "q": 2, "r": 1})
    new = evaluation(tmp_path / "new", {"r": 3, "q": 2, "p": 4}, weights="b" * 64)
    assert run(base, new, "--baseline", base, "--out", tmp_path / "out") == 0
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "| small | base | 3 | 4 | 25.0 [" in text
    assert "| +50.0 [" in text
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").read_text().splitlines()))
    (row,) = [row for row in rows if (row["run"], row["metric"]) == ("new", "avg")]
    assert float(row["change_value"]) == pytest.approx(6 / 12)
    # Differences +4, 0, +2 of 4 samples: 2 of 4 sign patterns reach as far.
    assert float(row["change_p_value"]) == pytest.approx(0.5)
    assert (float(row["device_hours"]), row["tokens"]) == (16.0, "1000")
    assert (tmp_path / "out" / "compare.tex").read_text().count("\\begin{tabular}") == 2
    assert "Changes are against base" in capsys.readouterr().out


def test_baseline_need_not_be_named_twice(tmp_path):
    base, new = evaluation(tmp_path / "base", {"p": 0}), evaluation(tmp_path / "new", {"p": 4})
    assert run(new, "--baseline", base, "--out", tmp_path / "out") == 0
    assert "| small | base |" in (tmp_path / "out" / "compare.md").read_text()


@pytest.mark.parametrize(
    ("right", "num", "message"),
    [({"p": 1, "q": 1}, 4, "not asked the same problems"), ({"p": 1}, 8, "same --num-samples")],
)
def test_runs_on_other_problems_are_not_paired(tmp_path, capsys, right, num, message):
    base, new = evaluation(tmp_path / "base", {"p": 0}), evaluation(tmp_path / "new", right, num=num)
    assert run(base, new) == 0
    assert run(base, new, "--baseline", base) == 2
    error = capsys.readouterr().err
    assert error.startswith("cannot compare: new against base: ")
    assert message in error


def test_same_weights_and_other_sampling_are_said(tmp_path, capsys):
    one = evaluation(tmp_path / "one", {"p": 1})
    other = evaluation(tmp_path / "other", {"p": 1}, temperature=0.6)
    assert run(one, other) == 0
    text = capsys.readouterr().out
    assert "SAME WEIGHTS" in text
    assert "temperature 1.0 -> 0.6" in text


def test_training_run_shows_its_validation_and_what_it_cost(tmp_path):
    validations = {0: {"a": [0], "b": [1]}, 2: {"a": [1], "b": [1]}}
    folder = training(tmp_path / "trd", validations, config=CLUSTER)
    assert run(folder, "--out", tmp_path / "out") == 0
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").read_text().splitlines()))
    (row,) = rows
    assert (row["set"], row["metric"], row["step"], float(row["value"])) == ("validation", "avg", "2", 1.0)
    # Two steps of half an hour on four devices for the student and four for the teacher.
    assert float(row["device_hours"]) == pytest.approx(8.0)
    # The step that was repeated counts once.
    assert (row["tokens"], row["student_tokens"], row["teacher_tokens"]) == ("400", "14", "10")
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "| trd | trd_opd | 2 | 50.0" in text


def test_training_runs_are_paired_on_their_validation(tmp_path):
    old = training(tmp_path / "old", {2: {"a": [0], "b": [1], "c": [0]}})
    new = training(tmp_path / "new", {4: {"a": [1], "b": [1], "c": [1]}})
    assert run(old, new, "--baseline", old, "--out", tmp_path / "out") == 0
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").read_text().splitlines()))
    assert float(rows[1]["change_value"]) == pytest.approx(2 / 3)
    assert float(rows[1]["change_p_value"]) == pytest.approx(0.5)
    # Without the cluster in its configuration the devices are not known.
    assert rows[1]["device_hours"] == ""


def test_damaged_lines_of_a_training_run_are_said(tmp_path, capsys):
    folder = training(tmp_path / "trd", {2: {"a": [1]}})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "da')
    assert run(folder) == 0
    assert "trd: WARNING: metrics.jsonl: 1 unreadable lines are left out" in capsys.readouterr().out


def test_scores_that_are_not_right_or_wrong_have_no_count(tmp_path):
    folder = training(tmp_path / "trd", {2: {"a": [0.3]}})
    assert compare.load(folder, "trd").sets == {}
    assert run(folder) == 0


def test_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert run(tmp_path) == 2
    assert "holds neither result.json" in capsys.readouterr().err
    folder = evaluation(tmp_path / "a", {"p": 1})
    assert run(folder, folder) == 2
    assert "given twice" in capsys.readouterr().err


def test_names_are_the_shortest_that_tell_runs_apart():
    assert compare.unique_names([Path("x/one"), Path("x/two")]) == ["one", "two"]
    assert compare.unique_names([Path("x/run"), Path("y/run")]) == ["x/run", "y/run"]
