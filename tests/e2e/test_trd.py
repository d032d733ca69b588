"""`method=trd_opd` for a few steps with the real engines, then what became of it."""

import json
import math
import signal

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.e2e

METRICS = [
    "trd/rewrite_accept_rate",
    "trd/y_o_acc",
    "trd/y_r_acc",
    "trd/wrong_to_right",
    "trd/right_to_wrong",
    "trd/y_o_length/mean",
    "trd/y_r_length/mean",
    "timing_s/rewrite",
    "timing_s/teacher",
    "actor/trd/divergence",
    "actor/trd/teacher_mass",
    "actor/grad_norm",
]


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(world):
    return AutoTokenizer.from_pretrained(world / "student")


@pytest.fixture(scope="module")
def trained(trd_run):
    return load(trd_run.folder / "global_step_3" / "actor" / "huggingface")


def prompt_ids(tokenizer, problem):
    message = [{"role": "user", "content": problem}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=False)


def greedy(model, tokenizer, problem):
    ids = torch.tensor([prompt_ids(tokenizer, problem)])
    out = model.generate(ids, do_sample=False, max_new_tokens=64, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def mean_log_prob(model, context, response):
    """Mean log-probability of the response's tokens."""
    logits = model(torch.tensor([context + response])).logits[0].log_softmax(-1)
    rows = logits[len(context) - 1 : len(context) + len(response) - 1]
    return rows.gather(-1, torch.tensor(response)[:, None]).mean().item()


def test_every_step_has_the_metrics_that_the_readme_names(trd_run):
    steps = trd_run.metrics()
    assert sorted(steps) == [1, 2, 3]
    for data in steps.values():
        assert [name for name in METRICS if not math.isfinite(data.get(name, math.nan))] == []
        assert data["timing_s/old_log_prob"] < 0.05
    assert steps[3]["trd/rewrite_accept_rate"] > 0.8
    assert steps[3]["trd/y_r_acc"] > steps[3]["trd/y_o_acc"]


def test_metrics_reach_every_tracker(trd_run):
    assert list((trd_run.folder / "tensorboard").rglob("events.out.tfevents.*"))
    assert list((trd_run.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert "trd/rewrite_accept_rate" in (trd_run.folder / "log.txt").read_text()


def test_the_students_weights_changed(trd_run, trained, world):
    before = load(world / "student").state_dict()
    change = {name: (value - before[name]).abs().max().item() for name, value in trained.state_dict().items()}
    assert all(value > 1e-4 for value in change.values()), change


def test_the_server_answers_with_the_trained_weights(trd_run, trained, tokenizer, world):
    # Validation is greedy: the server's words have to be those of the checkpoint, and not those of the start.
    rows = trd_run.rows("validation", 3)[:12]
    problems = [row["input"].split("\n")[1] for row in rows]
    said = [row["output"] for row in rows]
    assert said == [greedy(trained, tokenizer, problem) for problem in problems]
    start = load(world / "student")
    assert said != [greedy(start, tokenizer, problem) for problem in problems]


def test_y_r_is_the_teachers_under_the_refine_context(trd_run, tokenizer, world):
    teacher, student = load(world / "teacher"), load(world / "student")
    rows = [row for row in trd_run.rows("rollouts", 1) if row["verdict"] == "accepted"]
    assert rows
    by_teacher, by_student = [], []
    for row in rows:
        problem = row["x"].split("\n")[1]
        assert problem in row["teacher_context"]
        assert row["y_o"] in row["teacher_context"]
        y_r = [*tokenizer(row["y_r"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        context = prompt_ids(tokenizer, row["teacher_context"].removeprefix("user\n").removesuffix("\nassistant\n"))
        by_teacher.append(mean_log_prob(teacher, context, y_r))
        by_student.append(mean_log_prob(student, prompt_ids(tokenizer, problem), y_r))
    # A sample of the teacher has about its entropy as surprise, which is next to nothing in this world.
    assert sum(by_teacher) / len(rows) > -0.05
    assert sum(by_teacher) > sum(by_student)


def test_student_rows_hold_no_teacher_text(trd_run, tokenizer):
    for step in (1, 2, 3):
        for row in trd_run.rows("rollouts", step):
            problem = row["x"].split("\n")[1]
            assert row["x"] == tokenizer.decode(prompt_ids(tokenizer, problem), skip_special_tokens=True)
            assert "Rewrite" not in row["x"]


def test_the_summary_says_what_happened(trd_run):
    summary = json.loads((trd_run.folder / "summary.json").read_text())
    assert summary["method"] == "trd_opd"
    assert summary["last_step"] == 3
    assert len(summary["examples"]) == 3
    assert summary["packages"]["verl"] == "0.9.1"
    assert 0 < summary["seconds"]["startup"] < 480
    for needle in ("step 3/3", "held-out accuracy after step 3", "global_step_3"):
        assert needle in trd_run.text()


def test_resume_fallback_and_interrupt(trd_run, launch):
    """The same command resumes; rewrites that never end fall back to y_o; Ctrl-C leaves no process behind."""
    run = launch(
        trd_run.folder,
        "method=trd_opd",
        "data.train_batch_size=16",
        "data.val_max_samples=32",
        "trainer.val_before_train=False",
        "trainer.total_training_steps=50",
        "trd.rewrite.max_response_length=8",
    )
    run.wait_for("step  5/50")
    family = run.descendants()
    run.process.send_signal(signal.SIGINT)
    assert run.wait(timeout_s=60) == 130
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []

    assert min(run.metrics()) == 4
    assert sorted(run.metrics("metrics_1.jsonl")) == [1, 2, 3]
    data = run.metrics()[4]
    assert data["trd/verdict/unfinished"] > 0.9
    assert math.isfinite(data["actor/trd/divergence"])
    rows = run.rows("rollouts", 4)
    rejected = [row for row in rows if row["verdict"] == "unfinished"]
    assert {row["trained_on"] for row in rejected} == {"y_o"}
    # The fallback is scored under the vanilla context: the student's own prompt.
    assert all(row["teacher_context"] == row["x"] for row in rejected)
