"""The run scripts: they compose, fit, pass every check that needs no weights, and twins differ in the method alone."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import save_file
from transformers import LlamaConfig

from recipe.trd.plan import architectures, memory
from recipe.trd.preflight import checks, model_pair

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("run_*.sh"))
GPU_SCRIPTS = [name for name in SCRIPTS if "tiny" not in name]
TWINS = ["run_opd_qwen7b.sh", "run_grpo_qwen7b.sh", "run_trd_opsd_qwen7b.sh"]


def run(script, *arguments, **knobs):
    """The script with a bare environment and `echo` in the place of Python, unless the knobs say otherwise."""
    environment = {"PATH": os.environ["PATH"], "PYTHON": "echo", **knobs}
    command = ["bash", str(ROOT / "scripts" / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def overrides_of(script, *arguments, **knobs):
    """What the script hands to `recipe.trd.main`."""
    done = run(script, *arguments, **knobs)
    assert done.returncode == 0, done.stderr
    start, *overrides = done.stdout.splitlines()[-1].removeprefix("-m ").split(" ")
    assert start == "recipe.trd.main"
    return overrides


def needs_method(script):
    """Skips while the preset of the script's method does not exist."""
    (method,) = re.findall(r"^METHOD=\$\{METHOD:-(\w+)\}", (ROOT / "scripts" / script).read_text(), re.MULTILINE)
    if not (ROOT / "configs" / "method" / f"{method}.yaml").exists():
        pytest.skip(f"configs/method/{method}.yaml does not exist yet")


def composed(overrides):
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        return compose("trd_trainer", overrides=list(overrides))


@pytest.fixture
def models(monkeypatch, tokenizer, tmp_path):
    """Models that are not here: their shapes from the table, one tokenizer for all; and a file with a row of data."""

    def config_of(path):
        shape = architectures.read(path)
        return LlamaConfig(
            max_position_embeddings=shape.max_positions,
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_layers,
        )

    monkeypatch.setattr(model_pair, "AutoConfig", SimpleNamespace(from_pretrained=config_of))
    monkeypatch.setattr(model_pair, "AutoTokenizer", SimpleNamespace(from_pretrained=lambda path: tokenizer))
    monkeypatch.setattr(checks.plugin, "is_cpu_platform", lambda: False)
    row = {"data_source": "x", "reward_model": {"ground_truth": "1"}, "reference_solution": "1"}
    prompts = ([{"role": "user", "content": f"{number}"}] for number in range(512))
    pd.DataFrame([row | {"prompt": prompt} for prompt in prompts]).to_parquet(tmp_path / "rows.parquet")
    files = [f"data.train_files={tmp_path}/rows.parquet", f"data.val_files={tmp_path}/rows.parquet"]
    # The CPUs and GPUs are those of a cluster.
    return [*files, "trd.preflight.skip=[devices]"]


@pytest.mark.parametrize("nodes", ["1", "2", "4"])
@pytest.mark.parametrize("script", GPU_SCRIPTS)
def test_it_passes_every_check_and_fits_its_gpus(script, nodes, models):
    needs_method(script)
    config = composed([*overrides_of(script, NODES=nodes, SEED="5"), *models])
    assert memory.make(config, gpu_gib=79).problems == []
    # verl's `validate_config` and ours.
    checks.check(config)
    assert config.data.seed == config.actor_rollout_ref.rollout.seed == 5
    if config.distillation.enabled:
        assert config.trainer.nnodes + config.distillation.nnodes == max(2, int(nodes))


@pytest.fixture(scope="module")
def dry_runs(tmp_path_factory):
    """What every script printed with DRY_RUN=1, and the folder that it could have written to."""
    folder = tmp_path_factory.mktemp("dry")
    knobs = {"DRY_RUN": "1", "PYTHON": sys.executable, "RUN_DIR": str(folder / "run"), "HOME": str(folder)}
    # The student of self-distillation may not be built; its shape is that of the other one.
    arguments = ["trainer.total_training_steps=7", "actor_rollout_ref.model.path=data/tiny_world/student"]

    def dry_run(script):
        return run(script, *arguments[: 2 if "opsd_tiny" in script else 1], **knobs)

    # Each takes seconds, nearly all of them imports.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(dry_run, SCRIPTS)
        return folder, dict(zip(SCRIPTS, done, strict=True))


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_shows_configuration_plan_and_commands_and_starts_nothing(script, dry_runs):
    if "tiny" not in script:
        needs_method(script)
    folder, done = dry_runs[0], dry_runs[1][script]
    assert done.returncode == 0, done.stderr
    configuration, rest = done.stdout.split("# Plan\n")
    shown, commands = rest.split("# Command on this machine\n")
    resolved = OmegaConf.create(configuration.removeprefix("# Configuration\n"))
    assert resolved.trainer.total_training_steps == 7
    assert resolved.trainer.default_local_dir == str(folder / "run")
    assert shown.startswith(("student", "no accelerator"))
    assert "fits into GPUs of 79 GiB" in shown
    assert f"{sys.executable} -m recipe.trd.main" in commands
    assert "srun --nodes=1" in commands
    assert not list(folder.iterdir())


@pytest.mark.parametrize("twin", TWINS)
def test_twins_differ_in_their_method_alone(twin):
    def code(script):
        lines = (ROOT / "scripts" / script).read_text().splitlines()
        return [line for line in lines if line.startswith("#SBATCH") or not line.startswith("#")]

    differing = [(a, b) for a, b in zip(code("run_trd_qwen7b.sh"), code(twin), strict=True) if a != b]
    assert len(differing) == 1
    assert all(line.startswith("METHOD=") for line in differing[0])
    trd, other = (set(overrides_of(script, RUN_DIR="run")) for script in ("run_trd_qwen7b.sh", twin))
    # Keys of a rewrite go to methods that rewrite; others would refuse them.
    assert {item.split("=")[0] for item in trd ^ other if not item.startswith("trd.rewrite.")} == {"method"}


@pytest.mark.parametrize(
    ("swap", "student"),
    [
        (["model=qwen3_8b"], "Qwen/Qwen3-8B"),
        (["model=llama3_2_3b"], "meta-llama/Llama-3.2-3B-Instruct"),
        (["actor_rollout_ref.model.path=google/gemma-2-2b-it"], "google/gemma-2-2b-it"),
    ],
)
def test_models_are_swapped_by_overrides(swap, student, models):
    teacher = "distillation.teacher_models.teacher_model.model_path=google/gemma-2-9b-it"
    short = ["data.max_response_length=2048", "data.max_refine_length=5120", "trd.rewrite.max_response_length=2048"]
    extra = [teacher, f"{teacher.rsplit('.', 1)[0]}.inference.max_model_len=8192", *short] if "gemma" in student else []
    config = composed([*overrides_of("run_trd_qwen3_1.7b.sh", *swap, *extra), *models])
    OmegaConf.resolve(config)
    assert config.actor_rollout_ref.model.path == student
    assert memory.make(config, gpu_gib=79).problems == []
    checks.check(config)


def test_a_model_in_a_folder_and_a_teacher_of_another_family(models, tmp_path, monkeypatch, tokenizer):
    folder = tmp_path / "mine"
    folder.mkdir()
    tiny = '{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}'
    (folder / "config.json").write_text(tiny[:-1] + ', "vocab_size": 999, "max_position_embeddings": 40960}')
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    config = composed([*overrides_of("run_trd_qwen3_1.7b.sh", f"actor_rollout_ref.model.path={folder}"), *models])
    assert memory.make(config, gpu_gib=79).problems == []
    checks.check(config)

    other = SimpleNamespace(get_vocab=lambda: {"x": 0}, eos_token_id=0, eos_token="x")
    byname = SimpleNamespace(from_pretrained=lambda path: tokenizer if path == str(folder) else other)
    monkeypatch.setattr(model_pair, "AutoTokenizer", byname)
    with pytest.raises(ValueError, match="different tokenizers"):
        checks.check(config)


@pytest.mark.parametrize(
    ("task", "expected"), [("0", ("trd_opd", "3")), ("1", ("trd_opd", "4")), ("2", ("grpo", "3")), ("3", ("grpo", "4"))]
)
def test_a_task_of_an_array_is_a_method_and_a_seed(task, expected):
    knobs = {"METHODS": "trd_opd grpo", "SEEDS": "3 4", "SLURM_ARRAY_TASK_ID": task}
    overrides = overrides_of("run_trd_qwen7b.sh", **knobs)
    assert {f"method={expected[0]}", f"data.seed={expected[1]}"} <= set(overrides)


def test_a_task_without_lists_is_a_seed_and_one_too_many_is_refused():
    assert "data.seed=7" in overrides_of("run_trd_qwen7b.sh", SLURM_ARRAY_TASK_ID="7")
    done = run("run_trd_qwen7b.sh", SEEDS="1 2", SLURM_ARRAY_TASK_ID="2")
    assert done.returncode == 2
    assert "submit with --array=0-1" in done.stderr


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("trd.sqsh", "--container-image=trd.sqsh --container-mounts="),
        ("trd.sif", "apptainer exec --nv --bind "),
    ],
)
def test_a_container_is_entered_by_every_node(image, expected, tmp_path):
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\n")
    stub.chmod(0o755)
    knobs = {"DRY_RUN": "1", "PYTHON": str(stub), "CONTAINER": image, "CONTAINER_MOUNTS": "/data:/data"}
    done = run("run_trd_qwen7b.sh", **knobs, SLURM_JOB_NUM_NODES="3")
    command = done.stdout.splitlines()[-1].replace("\\", "")
    assert command.startswith("srun --nodes=3 --ntasks=3 --ntasks-per-node=1 ")
    assert expected in command
    assert f"{ROOT}:{ROOT},/data:/data" in command
    assert command.index(expected) < command.index("node.sh") < command.index("recipe.trd.main")
    refused = run("run_trd_qwen7b.sh", **knobs, CONTAINER_RUNTIME="docker")
    assert refused.returncode == 2
    assert "choose pyxis or apptainer" in refused.stderr
