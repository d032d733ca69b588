"""What verl, vLLM and transformers have to be like: one test for each entry of `tests/contract/upstream.py`."""

import contextlib
import importlib
import importlib.metadata
import inspect
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from contract import upstream, upstream_config, upstream_texts

ROOT = Path(__file__).parents[2]
EVERYTHING = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def find(path):
    """The object at a dotted path; a Ray actor class gives way to the class behind it."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if not f"{path}.".startswith(f"{error.name}."):
                raise
            continue
        for name in parts[length:]:
            found = getattr(behind_ray(found), name)
        return behind_ray(found)
    raise ModuleNotFoundError(path)


def behind_ray(found):
    metadata = getattr(found, "__ray_metadata__", None)
    return found if metadata is None else metadata.modified_class


def resolve(path, used_in, why):
    try:
        return find(path)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"verl or vLLM no longer has {path} ({error}); we use it in {used_in}: {why}")


def names_of(found):
    """Parameters of a callable; for a class also its fields."""
    names = set()
    with contextlib.suppress(ValueError):  # a TypedDict has no signature
        names |= set(inspect.signature(found).parameters)
    for base in getattr(found, "__mro__", [found]):
        names |= set(inspect.get_annotations(base)) if inspect.isclass(base) else set()
    return names


def per_file(table):
    """Entries with the file of this repository that they belong to."""
    cases = [(file, entry) for file, entries in table.items() for entry in entries]
    return pytest.mark.parametrize(("file", "entry"), cases, ids=[f"{file}-{entry_id(entry)}" for file, entry in cases])


def entry_id(entry):
    return entry.call.partition("(")[0] if isinstance(entry, upstream.Symbol) else entry.path


@per_file(upstream.SYMBOLS)
def test_symbol_is_there_and_takes_what_we_pass(file, entry):
    path, _, inside = entry.call.removesuffix(")").partition("(")
    found = resolve(path, file, entry.why)
    assert callable(found), f"{path} can no longer be called; we use it in {file}: {entry.why}"
    missing = {name for name in inside.split(", ") if name} - names_of(found)
    assert not missing, f"{path} no longer has {sorted(missing)}; we use it in {file}: {entry.why}"


def parameters_of(found):
    # Ray adds one of its own to the methods of actors.
    return [p for p in inspect.signature(found).parameters.values() if not p.name.startswith("_ray")]


@pytest.mark.parametrize("entry", upstream.OVERRIDES, ids=lambda entry: entry.override)
def test_override_accepts_every_call_of_the_original(entry):
    original = parameters_of(resolve(entry.path, entry.override, entry.why))
    override = parameters_of(find(entry.override))
    assert find(entry.override) is not find(entry.path), f"{entry.override} is {entry.path} itself"
    kinds = {parameter.kind for parameter in override}
    named = {parameter.name: parameter for parameter in override if parameter.kind not in EVERYTHING}
    changed = f"verl or vLLM changed {entry.path}{inspect.signature(find(entry.path))}; {entry.override}: {entry.why}"
    for position, parameter in enumerate(original):
        if parameter.kind in EVERYTHING:
            assert parameter.kind in kinds, changed
        elif parameter.name in named:
            assert override.index(named[parameter.name]) == position or inspect.Parameter.VAR_POSITIONAL in kinds, (
                changed
            )
            if parameter.default is not inspect.Parameter.empty:
                assert named[parameter.name].default is not inspect.Parameter.empty, changed
        else:
            assert inspect.Parameter.VAR_KEYWORD in kinds, changed
    added = [name for name in named if name not in {parameter.name for parameter in original}]
    assert all(named[name].default is not inspect.Parameter.empty for name in added), changed


@cache
def source_of(path):
    return inspect.getsource(find(path))


def has_attribute(cls, name):
    """Whether the class has it or declares it, or one of its methods assigns it to `self`."""
    assigned = re.compile(rf"\bself\.{re.escape(name)}\b\s*(:[^=\n]+)?=[^=]")
    for base in cls.__mro__[:-1]:
        if name in vars(base) or name in inspect.get_annotations(base):
            return True
        with contextlib.suppress(OSError):  # Ray puts a class of its own in between
            if base.__module__.startswith(("verl", "vllm")) and assigned.search(inspect.getsource(base)):
                return True
    return False


@per_file(upstream.ATTRIBUTES)
def test_attribute_is_there(file, entry):
    path, _, name = entry.path.rpartition(".")
    cls = resolve(path, file, entry.why)
    assert has_attribute(cls, name), f"{path} no longer sets {name}; we use it in {file}: {entry.why}"


@per_file(upstream_texts.TEXTS)
def test_text_is_in_the_source(file, entry):
    resolve(entry.path, file, entry.why)
    source = " ".join(source_of(entry.path).split())
    assert entry.text in source, f"{entry.path} no longer contains {entry.text!r}; we rely on it in {file}: {entry.why}"


def test_what_is_gone_would_be_noticed():
    replica = "verl.workers.rollout.replica.RolloutReplica"
    with pytest.raises(AssertionError, match=r"no longer contains 'no such'; we rely on it in x.py: y"):
        test_text_is_in_the_source("x.py", upstream_texts.Text("verl.utils.config", "no such", "y"))
    with pytest.raises(AssertionError, match=r"no longer has \['no'\]; we use it in x.py: y"):
        test_symbol_is_there_and_takes_what_we_pass("x.py", upstream.Symbol("verl.trainer.main_ppo.run_ppo(no)", "y"))
    with pytest.raises(AssertionError, match=r"no longer sets no; we use it in x.py: y"):
        test_attribute_is_there("x.py", upstream.Attribute(f"{replica}.no", "y"))
    with pytest.raises(pytest.fail.Exception, match=r"no longer has verl.utils.no.Thing .*; we use it in x.py: y"):
        test_attribute_is_there("x.py", upstream.Attribute("verl.utils.no.Thing.name", "y"))
    with pytest.raises(AssertionError, match=r"verl or vLLM changed verl.trainer.ppo.core_algos.agg_loss"):
        test_override_accepts_every_call_of_the_original(
            upstream.Override(
                "verl.trainer.ppo.core_algos.agg_loss", "recipe.trd.training.worker.TrdWorker.update_actor", "y"
            )
        )


@pytest.fixture(scope="module")
def verl_config():
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer")


@pytest.mark.parametrize("node", upstream_config.CONFIG_KEYS)
def test_config_keys_are_verls(verl_config, node):
    found = OmegaConf.select(verl_config, node)
    assert found is not None, (
        f"verl's configuration no longer has {node}, of which we use {upstream_config.CONFIG_KEYS[node]}"
    )
    missing = [key for key in upstream_config.CONFIG_KEYS[node] if key not in found]
    assert not missing, f"verl's configuration no longer has {missing} in {node}; our code reads them"


@pytest.mark.parametrize("key", upstream_config.ADDED_KEYS)
def test_added_key_is_read_by_somebody(verl_config, key):
    node, _, name = key.rpartition(".")
    parent = OmegaConf.select(verl_config, node)
    assert parent is None or name not in parent, f"{key} is verl's by now: take it out of ADDED_KEYS"
    reader = upstream_config.ADDED_KEYS[key]
    if reader != "recipe":
        found = find(reader)
        # `override_config` and its kind are handed on as they are: the node is what has to be known.
        known = names_of(found) if callable(found) else set()
        assert name in known or name in source_of(reader) or node.rpartition(".")[2] in known, (
            f"{reader} does not know {key}"
        )


@pytest.mark.parametrize("table", [upstream.SYMBOLS, upstream.ATTRIBUTES], ids=["symbols", "attributes"])
def test_no_entry_is_stale(table):
    for file, entries in table.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        for entry in entries:
            name = entry_id(entry).rpartition(".")[2]
            assert name in text, f"{file} no longer uses {entry_id(entry)}: take it out of tests/contract/upstream.py"


def test_files_that_rely_on_a_text_exist():
    assert [file for file in upstream_texts.TEXTS if not (ROOT / file).is_file()] == []


def test_installed_verl_is_the_one_that_was_read():
    assert importlib.metadata.version("verl") == upstream.VERL_VERSION
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"verl[verl-core]=={upstream.VERL_VERSION}" in project["dependencies"]


def test_installed_vllm_is_one_that_was_read():
    from verl.third_party.vllm import vllm_version

    assert str(vllm_version).startswith(upstream.VLLM_VERSIONS)
