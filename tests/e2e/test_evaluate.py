"""The real command on the tiny world: vLLM samples, `kill -9` comes in between, and the numbers are counted by hand."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
NUM_PROBLEMS, NUM_SAMPLES = 32, 16
NUM_KILLED = 60
"""Samples after which the first process is killed, or a few more."""
ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
}


def start(world: Path, out: Path) -> subprocess.Popen:
    """Few sequences at a time, so that there is a middle to kill it in; float32, so that batches do not matter."""
    options = (
        f"--limit {NUM_PROBLEMS} -n {NUM_SAMPLES} --temperature 1.0 --top-p 0.95 --top-k 50 --max-tokens 64 --k 1 4 16"
    )
    engine = "--engine enforce_eager=true --engine max_num_seqs=8 --engine dtype=float32 --grade-workers 1"
    files = ["--data", str(world / "held_out.parquet"), "--base", str(world / "student")]
    command = [sys.executable, "-m", "recipe.trd.evaluate", str(world / "student"), *files, "--out", str(out)]
    with out.with_suffix(".txt").open("a") as terminal:
        return subprocess.Popen(
            [*command, *options.split(), *engine.split()],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            stdout=terminal,
            stderr=subprocess.STDOUT,
        )


def finish(process: subprocess.Popen, out: Path) -> str:
    code = process.wait(240)
    text = out.with_suffix(".txt").read_text()
    assert code == 0, text[-4000:]
    return text


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def killed(world: Path, tmp_path_factory) -> dict:
    """An evaluation that was killed in the middle and started again."""
    out = tmp_path_factory.mktemp("evaluate") / "student"
    path = out / "samples" / "tiny_world.jsonl"
    process = start(world, out)
    deadline = time.monotonic() + 240
    while num_lines(path) < NUM_KILLED:
        assert process.poll() is None, out.with_suffix(".txt").read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = path.read_text()
    # What kill -9 leaves at worst: a line that is not whole.
    with path.open("a") as file:
        file.write('{"problem": "torn')
    text = finish(start(world, out), out)
    return {"out": out, "path": path, "before": before, "text": text}


def test_resume_repeats_no_sample_and_changes_none(killed):
    before = killed["before"][: killed["before"].rfind("\n") + 1]
    num_before = before.count("\n")
    assert NUM_KILLED <= num_before < NUM_PROBLEMS * NUM_SAMPLES
    assert killed["path"].read_text().startswith(before)
    rows = read(killed["path"])
    counts = Counter((row["problem"], row["sample"]) for row in rows)
    assert len(counts) == len(rows) == NUM_PROBLEMS * NUM_SAMPLES
    assert {sample for _, sample in counts} == set(range(NUM_SAMPLES))
    assert len({problem for problem, _ in counts}) == NUM_PROBLEMS
    assert [row["session"] for row in rows] == [0] * num_before + [1] * (len(rows) - num_before)
    assert f"{num_before} of {len(rows)} samples are there" in killed["text"]


def test_average_and_pass_at_k_are_those_of_a_count_by_hand(killed, world):
    table = pd.read_parquet(world / "held_out.parquet").head(NUM_PROBLEMS)
    truths = [row["ground_truth"] for row in table["reward_model"]]
    result = json.loads((killed["out"] / "result.json").read_text())
    part = result["sets"][0]
    right = defaultdict(list)
    # Problems of a result are in the order of the file.
    truth_of = dict(zip(part["problems"], truths, strict=True))
    for row in read(killed["path"]):
        boxes = re.findall(r"\\boxed\{(-?\d+)\}", row["text"])
        right[row["problem"]].append(bool(boxes) and boxes[-1] == truth_of[row["problem"]])
    num_right = sum(map(sum, right.values()))
    assert 0 < num_right < NUM_PROBLEMS * NUM_SAMPLES
    average = part["metrics"]["avg"]
    assert average["value"] == pytest.approx(num_right / (NUM_PROBLEMS * NUM_SAMPLES), abs=1e-12)
    assert average["low"] < average["value"] < average["high"]
    assert part["metrics"]["pass@1"]["value"] == pytest.approx(average["value"], abs=1e-12)
    assert part["metrics"]["pass@16"]["value"] == pytest.approx(sum(map(any, right.values())) / NUM_PROBLEMS, abs=1e-12)
    assert part["failed_grades"] == {"timeout": 0, "crashed": 0}


def test_table_says_that_these_are_the_base_weights(killed):
    text = (killed["out"] / "table.md").read_text()
    assert "EQUAL TO BASE" in text
    assert "| tiny_world | 32 |" in text


def test_sample_that_is_drawn_again_is_the_same(killed, world, tmp_path):
    """In another batch and order: the samples of the first session are drawn once more, beside those of the second."""
    out = tmp_path / "again"
    shutil.copytree(killed["out"], out)
    path = out / "samples" / "tiny_world.jsonl"
    rows = read(path)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["session"] == 1))
    finish(start(world, out), out)
    texts = {(row["problem"], row["sample"]): row["text"] for row in rows}
    again = [row for row in read(path) if row["session"] == 2]
    assert len(again) == sum(row["session"] == 0 for row in rows)
    assert all(texts[row["problem"], row["sample"]] == row["text"] for row in again)
