"""Every method of configs/method on the real engines: it samples, rewrites and scores, and then its loss falls.

verl's own two, `opd` and `grpo`, are in test_opd_grpo.py.
"""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
METHODS = sorted(
    path.stem
    for path in (ROOT / "configs" / "method").glob("[!_]*.yaml")
    if "upstream: true" not in path.read_text(encoding="utf-8")
)
COMMON = [
    "model=tiny",
    "data=tiny_world",
    "cluster=cpu",
    "data.train_batch_size=16",
    "trainer.val_before_train=False",
    "trainer.test_freq=-1",
    "trainer.logger=[file]",
    "actor_rollout_ref.actor.optim.lr=1e-4",
    "trd.teacher.engine.dtype=fp32",
    # Trainer and both servers on one logical accelerator, and packed sequences, as on one card without flash-attn.
    *("trd.shared_gpus=true", "ray_kwargs.ray_init.num_gpus=1", "actor_rollout_ref.model.use_remove_padding=true"),
    "actor_rollout_ref.model.override_config.attn_implementation=packed",
    # One list for all methods, in which not all of it acts; one rollout a prompt is enough here.
    "trd.preflight.skip=[unused_keys,groups]",
]


@pytest.fixture(scope="module")
def twin(world, tmp_path_factory):
    """A model of the student's shape and close to it, as a pair from one initialisation is."""
    folder = tmp_path_factory.mktemp("twin")
    model = AutoModelForCausalLM.from_pretrained(world / "student", dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05 * parameter.std())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(world / "student").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tour(twin, fitted_bridge, run_tour):
    """Metrics of every method, {method: {name: value}}, from one run of method_tour.py."""
    own = {
        # The tiny teacher is certain nearly everywhere: at 0.8 nats the gate may open nowhere in so small a batch.
        "eopd": ["trd.objective.plus.entropy_above=0.1"],
        "oprd": [f"trd.teacher.engine.path={twin}"],
        "oprd_bridge": [f"trd.objective.hidden.bridge={fitted_bridge[0]}"],
        "trd_grpo": ["actor_rollout_ref.rollout.n=4"],
    }
    cases = {name: [*COMMON, f"method={name}", *own.get(name, [])] for name in METHODS}
    # Settings that no preset has: the whole vocabulary on y_r, hidden states beside a divergence, a reward on y_o.
    cases["trd_full"] = [*COMMON, "method=trd_opd", "trd.teacher.scorer=engine", "trd.objective.support=full"]
    cases["mixed"] = [
        *(*COMMON, "method=opd_reverse_kl", f"trd.teacher.engine.path={twin}"),
        *("trd.objective.plus.divergence=hidden_mse", "trd.objective.plus.coef=10"),
        *("trd.objective.task_reward_coef=1", "algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.n=2"),
    ]
    cases["rejecting"] = [
        *(*COMMON, "method=trd_opd", "trd.rewrite.when=incorrect_only", "trd.rewrite.retries=2"),
        *("trd.rewrite.reject.wrong=true", "trd.rewrite.reject.no_answer=true"),
        "trd.rewrite.reject.student_log_prob_below=-5",
    ]
    for name, teacher in itertools.product(("opsd", "trd_opsd"), ("ema", "live")):
        own_weights = [f"trd.teacher.weights={teacher}", "trd.teacher.ema_decay=0.5", "trd.rewrite.weights=live"]
        cases[f"{name}_{teacher}"] = [*COMMON, f"method={name}", *own_weights]
    run_dir = run_tour("method_tour", cases)
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {name: step["data"] for name, step in zip(cases, steps, strict=True)}


def test_rewrites_that_are_rejected_are_asked_for_again(tour):
    found = tour["rejecting"]
    verdicts = {name.rsplit("/")[-1]: value for name, value in found.items() if name.startswith("trd/verdict/")}
    assert sum(verdicts.values()) == pytest.approx(1)
    assert verdicts["not_needed"] == pytest.approx(found["trd/y_o_acc"])
    assert verdicts["accepted"] > 0
    assert found["trd/y_r_acc"] == 1  # of those that were accepted
    assert found["trd/rewrite_attempts/mean"] >= 1
    assert -5 < found["trd/y_r_student_log_prob/mean"] < 0


@pytest.mark.parametrize("method", [*METHODS, "trd_full", "mixed"])
def test_three_updates_on_one_batch_bring_the_loss_down(tour, method):
    values = [tour[method][f"tour/actor/trd/divergence/{update}"] for update in range(3)]
    assert all(math.isfinite(value) for value in values)
    assert values[2] < values[1] < values[0], values
    assert tour[method]["tour/actor/grad_norm/0"] > 0
    assert tour[method]["trd/masked_frac"] < 0.2


def test_methods_differ_in_what_they_do(tour):
    """What each preset promises, seen in the metrics of its step."""
    assert "actor/trd/hidden_mse" in tour["oprd"]
    assert tour["oprd"]["actor/trd/hidden_cosine"] > 0.9
    assert "actor/trd/student_entropy" not in tour["oprd"]
    assert 0 < tour["eopd"]["actor/trd/forward_kl_gate"] < 0.5
    assert 0 < tour["opd_clip"]["actor/trd/forward_kl_clipped"] < 0.5
    assert "actor/trd/policy_loss" in tour["trd_grpo"]
    assert "trd/rewrite_accept_rate" not in tour["opd_jsd"]
    assert tour["sft_y_r"]["trd/rewrite_accept_rate"] > 0.5
    assert {"actor/trd/reverse_kl", "actor/trd/hidden_mse", "actor/trd/policy_loss"} <= set(tour["mixed"])


def test_the_whole_vocabulary_holds_what_the_top_k_holds(tour):
    """Both score a rewrite of the first student; the bucket makes the top-k a lower bound, and a close one here."""
    full, top = (tour[name]["tour/actor/trd/divergence/0"] for name in ("trd_full", "trd_opd"))
    assert top == pytest.approx(full, rel=0.5)


@pytest.mark.parametrize("method", ["opsd", "trd_opsd"])
def test_a_student_teaches_itself_with_each_kind_of_weights(tour, method):
    """Log-probs of both sides at every response token, from the first update on a batch to the third on the same."""
    moved = {
        kind: {side: tour[case][f"tour/actor/moved/{side}/2"] for side in ("student", "teacher")}
        for kind, case in (("frozen", method), ("ema", f"{method}_ema"), ("live", f"{method}_live"))
    }
    assert moved["frozen"]["teacher"] == 0
    assert min(moved["ema"]["teacher"], moved["live"]["teacher"]) > 1e-3, moved
    assert all(kind["student"] > 1e-3 for kind in moved.values()), moved
    errors = [tour[f"{method}_ema"][f"tour/actor/average_error/{update}"] for update in range(3)]
    assert max(errors) < 1e-6, errors
