"""The built wheel, installed without the checkout: commands answer from another folder, and plug-ins load from there.

Third-party packages come from the environment of the tests: a folder of links to all of them but the editable install.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("recipe", "verl_ext", "configs", "pyproject.toml", "README.md", "LICENSE")
"""What a build reads. `recipe/trd/config/yaml` stays the link that it is."""

LOADED = """
import importlib.metadata, json, sys
groups = {"verl": "verl.plugins", "vllm": "vllm.general_plugins"}
entries = {name: importlib.metadata.entry_points(group=group)["verl_ext"].load() for name, group in groups.items()}
import verl, recipe.trd
files = [entries["verl"].__file__, entries["vllm"].__code__.co_filename, recipe.trd.__file__]
print(json.dumps({"files": files, "is_loaded": entries["verl"].is_loaded(), "path": sys.path}))
"""
"""Prints where the plug-ins and the package come from, and where Python looks for modules."""

COMMANDS = {
    "main": (
        *("-m", "recipe.trd.main", "--cfg", "job", "method=trd_opsd", "model=qwen3_8b", "data=math", "cluster=gpu"),
        "experiment=lora",
    ),
    "plan": ("-m", "recipe.trd.plan", "method=trd_opd", "model=qwen3_1_7b", "data=math", "cluster=gpu"),
    "data": ("-m", "recipe.trd.data", "--help"),
    "tiny_world": ("-m", "recipe.trd.tiny_world", "--help"),
    "loaded": ("-c", LOADED),
}


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def pip(*arguments):
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments)


def build_wheel(source, folder):
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def names_in(wheel):
    with zipfile.ZipFile(wheel) as opened:
        return {name for name in opened.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what a build reads: setuptools leaves folders behind, and reads those of earlier builds."""
    folder = tmp_path_factory.mktemp("source")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Interpreter of an environment with the wheel and the third-party packages."""
    folder = tmp_path_factory.mktemp("environment")
    others = folder / "others"
    others.mkdir()
    installed = Path(pytest.__file__).parents[1]
    for path in installed.iterdir():
        if not path.name.startswith(("verl_trd", "__editable__", "__pycache__")):
            (others / path.name).symlink_to(path)
    venv.create(folder / "venv", with_pip=False)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(f"{others}\n", encoding="utf-8")
    pip("--python", folder / "venv", "install", "--no-deps", "--no-index", wheel)
    return folder / "venv" / "bin" / "python"


@pytest.fixture(scope="module")
def printed(python, tmp_path_factory):
    """What every command prints, run side by side in an empty folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    processes = {
        name: subprocess.Popen(
            [str(python), *command],
            cwd=folder,
            env={**environment, "VERL_PLATFORM": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=(folder / name).open("w"),
            stderr=subprocess.STDOUT,
        )
        for name, command in COMMANDS.items()
    }
    codes = {name: process.wait(timeout=300) for name, process in processes.items()}
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in COMMANDS}
    assert codes == dict.fromkeys(COMMANDS, 0), {name: text[-1000:] for name, text in texts.items() if codes[name]}
    assert {path.name for path in folder.iterdir()} == set(COMMANDS)
    return texts


def test_configurations_and_templates_are_files_of_the_wheel(wheel):
    names = names_in(wheel)
    configs = {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert {f"recipe/trd/config/yaml/{name}" for name in configs} <= names
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recipe").rglob("*.jinja")}
    assert templates
    assert templates <= names
    with zipfile.ZipFile(wheel) as opened:
        text = opened.read("recipe/trd/config/yaml/trd_trainer.yaml").decode()
    assert text == (ROOT / "configs" / "trd_trainer.yaml").read_text(encoding="utf-8")


def test_wheel_of_the_source_distribution_is_the_same(source, wheel, tmp_path):
    backend = f"import setuptools.build_meta as backend; backend.build_sdist({str(tmp_path)!r})"
    run(sys.executable, "-c", backend, cwd=source)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    (unpacked,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert not (unpacked / "recipe" / "trd" / "config" / "yaml").is_symlink()
    assert names_in(build_wheel(unpacked, tmp_path / "again")) == names_in(wheel)


def test_nothing_is_imported_from_the_checkout(printed, python):
    found = json.loads(printed["loaded"].splitlines()[-1])
    installed = python.parents[1]
    assert [file for file in found["files"] if not Path(file).is_relative_to(installed)] == []
    assert found["is_loaded"]
    assert [place for place in found["path"] if place and (Path(place) / "verl_ext").exists()] == [
        str(path.parent) for path in installed.glob("lib/python*/site-packages/verl_ext")
    ]


def test_main_composes_the_configuration(printed):
    assert "  method: trd_opsd\n" in printed["main"]
    assert "lora_rank: 64" in printed["main"]


def test_plan_is_printed(printed):
    assert "\nstudent  Qwen/Qwen3-1.7B" in printed["plan"]
    assert printed["plan"].rstrip().splitlines()[-1].startswith("fits into GPUs of")


def test_data_and_tiny_world_explain_themselves(printed):
    assert printed["data"].startswith("usage: python -m recipe.trd.data")
    assert "== Config ==" in printed["tiny_world"]
    assert "min_rewrite_accuracy:" in printed["tiny_world"]
