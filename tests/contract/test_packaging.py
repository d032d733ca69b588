"""How the package lies beside others: `recipe` is shared, the plug-ins are found, names do not clash."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from verl_ext import plugin

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def run_python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_recipe_is_a_namespace_and_trd_is_in_this_checkout():
    import recipe
    from recipe import trd

    assert recipe.__file__ is None
    assert Path(trd.__file__).parents[2] == ROOT


def test_another_recipe_can_live_beside_this_one(tmp_path):
    # A checkout of verl with its own recipes on the path; TransferQueue installs a `recipe` folder as well.
    (tmp_path / "recipe" / "dapo").mkdir(parents=True)
    (tmp_path / "recipe" / "dapo" / "__init__.py").write_text("NAME = 'another'")
    code = "import recipe.dapo, recipe.trd; print(recipe.dapo.NAME, recipe.trd.__name__)"
    assert run_python(code, PYTHONPATH=str(tmp_path)) == "another recipe.trd"


@pytest.mark.parametrize(
    ("group", "loaded"), [("verl.plugins", plugin), ("vllm.general_plugins", plugin.register_vllm)]
)
def test_entry_point_of_the_installed_package_loads(group, loaded):
    (entry,) = [entry for entry in importlib.metadata.entry_points(group=group) if entry.name == "verl_ext"]
    assert entry.dist.name == "verl-trd"
    assert entry.load() is loaded


def test_importing_verl_loads_the_plug_in():
    assert run_python("import verl, sys; print(sys.modules['verl_ext.plugin'].is_loaded())").endswith("True")


@pytest.mark.parametrize("name", ["tests", "scripts"])
def test_no_package_has_the_name_of_one_in_the_verl_wheel(name):
    assert not (ROOT / name / "__init__.py").exists()


def test_every_file_that_is_read_at_run_time_is_package_data():
    patterns = SETUPTOOLS["package-data"]["recipe.trd"]
    folder = ROOT / "recipe" / "trd"
    data = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".py"]
    unpacked = [
        str(path) for path in data if "__pycache__" not in path.parts and not any(fnmatch(path, p) for p in patterns)
    ]
    assert unpacked == []


def test_version_is_the_one_of_the_project():
    from recipe import trd

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert trd.__version__ == project["version"]


def test_importing_the_recipe_costs_nothing():
    code = "import recipe.trd, sys; print({'torch', 'verl', 'ray', 'transformers'} & set(sys.modules))"
    assert run_python(code) == "set()"
