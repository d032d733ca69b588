"""The examples of docs/extending.md, run as they are printed."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass

from recipe.trd.config import contexts
from verl_ext import divergence
from verl_ext.divergence import pointwise

ROOT = Path(__file__).parents[4]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def registered(monkeypatch):
    """The first two blocks, executed where the page says that they stand."""
    for registry in (pointwise.DISTRIBUTION_DIVERGENCES, pointwise.DIVERGENCES):
        monkeypatch.setitem(registry, "total_variation", None)
    names = dict(vars(pointwise), Term=divergence.Term)
    for language, code in BLOCKS[:2]:
        assert language == "python"
        exec(code, names)
    pointwise.DIVERGENCES["total_variation"] = names["total_variation"]


@pytest.mark.usefixtures("registered")
def test_the_function_passes_its_test():
    language, code = BLOCKS[2]
    assert language == "python"
    names = {"torch": torch, "pytest": pytest, **{name: getattr(divergence, name) for name in divergence.__all__}}
    exec(code, names)
    names["test_total_variation"]()


def composed(block, folder):
    """The configuration with a method that is a block of the page."""
    language, text = block
    assert language == "yaml"
    name = yaml.safe_load(text)["trd"]["method"]
    (folder / "method").mkdir()
    (folder / "method" / f"{name}.yaml").write_text(text)
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        paths = f"hydra.searchpath=[pkg://verl.trainer.config,file://{folder}]"
        return compose("trd_trainer", overrides=[paths, f"method={name}"])


@pytest.mark.usefixtures("registered")
def test_the_method_is_a_configuration(tmp_path):
    config = composed(BLOCKS[3], tmp_path)
    trd = omega_conf_to_dataclass(config.trd)
    assert trd.objective.distributions().terms[0].divergence == "total_variation"
    trd = omega_conf_to_dataclass(
        OmegaConf.merge(
            config, {"trd": {"teacher": {"scorer": "prefill"}, "objective": {"support": "teacher_topk"}}}
        ).trd
    )
    assert trd.has_server


def test_the_page_names_no_divergence_that_exists():
    assert "total_variation" not in pointwise.DIVERGENCES


def test_a_context_is_one_entry(tmp_path, monkeypatch):
    (entry, test), method = BLOCKS[4:6], BLOCKS[6]
    monkeypatch.setitem(contexts.CONTEXTS, "graded", None)
    exec(entry[1], vars(contexts).copy())
    plan = omega_conf_to_dataclass(composed(method, tmp_path).trd).teacher_plan
    names = {"plan_of": lambda name: plan}
    exec(test[1], names)
    names["test_graded"]()
