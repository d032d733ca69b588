"""Self-distillation with LoRA on the real engines: one server is student, frozen teacher and averaged teacher."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.e2e

COMMON = [
    *("model=tiny", "data=tiny_world", "cluster=cpu", "data.train_batch_size=16"),
    *("trainer.val_before_train=False", "trainer.test_freq=-1", "trainer.save_freq=-1", "trainer.logger=[file]"),
    *("actor_rollout_ref.actor.optim.lr=5e-3", "actor_rollout_ref.model.lora_rank=8"),
    # One device: there is no other server that could answer.
    "ray_kwargs.ray_init.num_gpus=1",
]
TRD = [*COMMON, "method=trd_opsd"]
TOP_K = ["trd.teacher.scorer=generation", "trd.objective.support=teacher_topk", "trd.objective.top_k=16"]
EMA = ["trd.teacher.weights=ema", "trd.teacher.ema_decay=0.5"]
OPSD = [*COMMON, "method=opsd"]
LIVE = ["trd.teacher.weights=live"]
CASES = [
    ("opsd", OPSD),
    ("opsd_ema", [*OPSD, *EMA]),
    ("opsd_live", [*OPSD, *LIVE]),
    ("live", [*TRD, *LIVE]),
    ("frozen", TRD),
    ("frozen_topk", [*TRD, *TOP_K]),
    ("ema", [*TRD, *EMA]),
    ("ema", [*TRD, *EMA]),
    ("ema_topk", [*TRD, *EMA, *TOP_K]),
]


@pytest.fixture(scope="module")
def run_dir(run_tour):
    return run_tour("adapter_tour", CASES)


@pytest.fixture(scope="module")
def answers(run_dir):
    """{moment: {"server_base": top-k log-probs, ...}}"""
    moments = [*map(str, range(len(CASES) + 1)), "new", "resumed"]
    return {moment: dict(np.load(run_dir / f"answers_{moment}.npz")) for moment in moments}


def apart(one, two):
    return float(np.abs(one - two).max())


def test_there_is_one_base_in_the_trainer_and_one_on_a_server(run_dir, world):
    counts = json.loads((run_dir / "counts.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(world / "student", dtype=torch.float32)
    assert counts["parameters"]["all"] == sum(p.numel() for p in base.parameters()) + counts["parameters"]["trained"]
    assert counts["parameters"]["trained"] < counts["parameters"]["all"] / 2
    servers = [title for title in counts["processes"] if title.startswith("ray::TopKServer")]
    engines = [title for title in counts["processes"] if title.startswith("VLLM::EngineCore")]
    assert (len(servers), len(engines)) == (1, 1), counts["processes"]


def test_server_and_trainer_agree_on_all_weights(answers):
    for moment, found in answers.items():
        for weights in {name.partition("_")[2] for name in found}:
            assert apart(found[f"server_{weights}"], found[f"module_{weights}"]) < 1e-3, (moment, weights)


def test_the_frozen_teacher_stays_while_the_student_moves(answers):
    first, last = answers["0"], answers[str(len(CASES))]
    assert apart(first["module_base"], last["module_base"]) == 0
    assert apart(first["server_base"], last["server_base"]) < 1e-3
    assert apart(first["server_base"], first["server_student"]) < 1e-3  # adapters begin at 0
    assert apart(first["server_student"], last["server_student"]) > 0.05


def test_the_average_is_neither_of_them_and_outlives_a_restart(answers):
    saved, new, resumed = (answers[moment] for moment in (str(len(CASES) - 1), "new", "resumed"))
    assert apart(saved["server_average"], saved["server_student"]) > 0.01
    assert apart(saved["server_average"], saved["server_base"]) > 0.01
    assert apart(new["server_average"], new["server_student"]) < 1e-3
    assert apart(resumed["server_average"], saved["server_average"]) < 1e-3


def test_both_methods_train_with_each_kind_of_weights(run_dir):
    steps = [json.loads(line)["data"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len(CASES)
    for (name, _), step in zip(CASES, steps, strict=True):
        assert step["actor/grad_norm"] > 0, name
        assert step["trd/masked_frac"] < 0.5, name
        assert step.get("trd/verdict/failed", 0) == 0, name
        assert ("actor/average_error" in step) == ("ema" in name), name
        assert step.get("actor/average_error", 0) < 1e-6, name
