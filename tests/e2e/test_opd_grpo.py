"""`method=opd` and `method=grpo`: verl's own path, and what happens when a server dies on it."""

import math
import time

import psutil
import pytest

pytestmark = pytest.mark.e2e

SMALL = ["data.train_batch_size=16", "data.val_max_samples=32", "trainer.val_before_train=False"]

# Greedy by way of top_k: the same tokens whatever the order in which requests reach the server.
DETERMINISTIC = [
    "actor_rollout_ref.rollout.n=1",
    "trd.preflight.skip=[groups]",
    "actor_rollout_ref.rollout.top_k=1",
    # verl's default reports the distribution after top_k, in which the one token has probability 1.
    "actor_rollout_ref.rollout.logprobs_mode=raw_logprobs",
    "actor_rollout_ref.actor.optim.lr=1e-3",
    "trainer.total_training_steps=2",
    "trainer.test_freq=2",
    "data.shuffle=False",
]


def test_opd_trains_and_a_dead_server_ends_the_run(launch, tmp_path):
    run = launch(tmp_path / "opd", "method=opd", *SMALL, "trainer.total_training_steps=500", "trd.health_interval_s=3")
    run.wait_for("step   2/500")
    for step in (1, 2):
        assert math.isfinite(run.metrics()[step]["actor/distillation/loss"])
        assert run.metrics()[step]["actor/grad_norm"] > 0
    family = run.descendants()
    workers = [process for process in family if process.name().startswith("VLLM::Worker")]
    assert len(workers) == 2
    killed_at = time.monotonic()
    workers[0].kill()
    assert run.wait(timeout_s=120) == 1
    assert time.monotonic() - killed_at < 120
    assert "vLLM server died" in run.text()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_grpo_gives_the_metrics_of_verls_own_entry_point(launch, tmp_path):
    ours = launch(tmp_path / "ours", "method=grpo", *SMALL, *DETERMINISTIC)
    assert ours.wait() == 0, ours.text()[-4000:]
    # verl's own program on the configuration that our run resolved, less what only our trainer reads.
    theirs = launch(
        tmp_path / "theirs",
        f"--config-path={tmp_path / 'ours'}",
        "--config-name=config",
        "trainer.v1.trainer_mode=sync",
        f"ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH={tmp_path / 'theirs.jsonl'}",
        f"trainer.rollout_data_dir={tmp_path / 'theirs' / 'rollouts'}",
        f"trainer.validation_data_dir={tmp_path / 'theirs' / 'validation'}",
        "hydra.run.dir=.",
        "hydra.output_subdir=null",
        "hydra/job_logging=stdout",
        module="verl.trainer.main_ppo",
    )
    assert theirs.wait() == 0, theirs.text()[-4000:]
    expected = theirs.metrics(str(tmp_path / "theirs.jsonl"))
    got = ours.metrics()
    assert sorted(got) == sorted(expected) == [1, 2]
    for step, metrics in expected.items():
        assert set(got[step]) == {*metrics, "trd/skipped_updates"}
        # Ours are of the limits of `data`, verl's of the longest of the batch.
        clipped = {name for name in metrics if name.endswith("/clip_ratio")}
        timed = {name for name in metrics if name.startswith("timing") or "perf/" in name} | clipped
        unlike = {
            name: (got[step][name], metrics[name])
            for name in set(metrics) - timed
            # verl logs null for what a batch does not define.
            if not (got[step][name] is metrics[name] is None)
            and got[step][name] != pytest.approx(metrics[name], rel=1e-3, abs=1e-4)
        }
        assert unlike == {}, step
    # The server got the weights of the first update: its log-probs are the trainer's.
    assert got[2]["training/rollout_probs_diff_mean"] < 1e-3
