"""How much of a Ray cluster a run needs, and what is said when it is not there."""

import copy
from pathlib import Path

import pytest
import ray
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from verl_ext.runtime import resources

CONFIGS = Path(__file__).parents[4] / "configs"


@pytest.fixture(scope="module")
def composed():
    """Configurations of methods on CPU, as they are after the checks before a run: those say who needs a server."""
    servers = {"grpo": False, "opd": True, "trd_opd": True, "opd_forward_kl": False}
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return {
            name: compose("trd_trainer", overrides=[f"method={name}", "cluster=cpu", f"distillation.enabled={needed}"])
            for name, needed in servers.items()
        }


@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [
        # One bundle of 3 CPUs for each GPU; task runner, controller, storage unit, agent-loop worker, reward worker.
        ("grpo", {}, {"GPU": 1, "CPU": 3 + 5}),
        ("opd", {}, {"GPU": 2, "CPU": 6 + 5}),
        ("trd_opd", {}, {"GPU": 2, "CPU": 6 + 5}),
        ("opd_forward_kl", {}, {"GPU": 1, "CPU": 3 + 5}),
        ("trd_opd", {"trainer.n_gpus_per_node": 4, "distillation.n_gpus_per_node": 2}, {"GPU": 6, "CPU": 18 + 5}),
        ("opd", {"trainer.nnodes": 2, "trainer.n_gpus_per_node": 8}, {"GPU": 17, "CPU": 51 + 5}),
        (
            "grpo",
            {"actor_rollout_ref.rollout.agent.num_workers": 8, "reward.num_workers": 4},
            {"GPU": 1, "CPU": 3 + 15},
        ),
        ("grpo", {"transfer_queue.backend.SimpleStorage.num_data_storage_units": 8}, {"GPU": 1, "CPU": 3 + 12}),
    ],
)
def test_required_by_hand(composed, method, changes, expected):
    config = copy.deepcopy(composed[method])
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    assert resources.required(config) == expected


def test_reward_model_has_gpus_of_its_own(composed):
    config = copy.deepcopy(composed["grpo"])
    pool = {"enable": True, "enable_resource_pool": True, "nnodes": 1, "n_gpus_per_node": 2}
    OmegaConf.update(config, "reward.reward_model", pool)
    assert resources.required(config) == {"GPU": 3, "CPU": 9 + 5}


@pytest.mark.parametrize("method", ["grpo", "opd", "trd_opd", "opd_forward_kl"])
def test_configuration_for_the_cpu_offers_what_its_run_needs(composed, method):
    ray_init = composed[method].ray_kwargs.ray_init
    offered = {"GPU": ray_init.num_gpus, "CPU": ray_init.num_cpus}
    for name, units in resources.required(composed[method]).items():
        assert units <= offered[name]


@pytest.fixture
def cluster(monkeypatch):
    """Ray's answers, one after another; the last one stays."""

    def answers(*states):
        left = list(states)
        monkeypatch.setattr(ray, "cluster_resources", lambda: left.pop(0) if len(left) > 1 else left[0])
        monkeypatch.setattr(resources.time, "sleep", lambda seconds: None)
        return left

    return answers


def test_enough_returns_at_once(cluster):
    cluster({"GPU": 2.0, "CPU": 32.0, "memory": 1e9})
    resources.wait_until_available({"GPU": 2, "CPU": 11})


def test_nodes_that_join_late_are_waited_for(cluster):
    left = cluster({}, {"CPU": 32.0}, {"GPU": 2.0, "CPU": 32.0})
    resources.wait_until_available({"GPU": 2, "CPU": 11})
    assert len(left) == 1


def test_what_is_missing_is_named_with_the_amounts_and_the_keys(cluster):
    cluster({"CPU": 4.0, "GPU": 2.0})
    with pytest.raises(RuntimeError) as caught:
        resources.wait_until_available({"GPU": 2, "CPU": 11, "TPU": 1}, timeout_s=-1)
    message = str(caught.value)
    assert "needs 11 CPU (has 4), 1 TPU (has 0)" in message
    assert "GPU (has" not in message
    for key in ("trainer.n_gpus_per_node", "distillation.n_gpus_per_node", "ray_kwargs.ray_init.num_cpus"):
        assert key in message
