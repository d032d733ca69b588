"""Every YAML file under configs/: it composes, says what it is for, and changes nothing that it does not name."""

import copy
import dataclasses
import re
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir, initialize_config_module
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass

from contract import upstream_config
from recipe.trd.config.schema import TrdConfig

CONFIGS = Path(__file__).parents[2] / "configs"
GROUPS = ("method", "model", "data", "cluster")
BASE = CONFIGS / "trd_trainer.yaml"
WORLD = CONFIGS / "tiny_world.yaml"
OVERLAYS = sorted(CONFIGS.glob("*/[!_]*.yaml"))
SHARED = sorted(CONFIGS.glob("*/_*.yaml"))
"""What several files of a group begin with; nobody chooses them."""

UNSET = {"oprd_bridge": {"trd.objective.hidden.bridge": "maps"}}
"""Keys that a method leaves to the user, with a value that would do."""


def options(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("[!_]*.yaml"))


def file_id(path):
    return str(path.relative_to(CONFIGS))


@cache
def composed(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("trd_trainer", overrides=list(overrides))


@cache
def verls():
    """Leaves of verl's own configuration, as it ships."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return leaves(OmegaConf.to_container(compose("ppo_trainer")))


def leaves(node, prefix=""):
    """Dotted keys of everything that is not a filled mapping; interpolations stay as they are written."""
    flat = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@cache
def set_by(path):
    """Leaves that a file sets, at their place in the whole configuration."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content = {key: value for key, value in content.items() if key not in ("defaults", "hydra")}
    return leaves({"data": content} if path.parent.name == "data" else content)


CHOICES = [
    # Every method on every cluster, and every model with every data set: files of these pairs set the same keys.
    *(dict(zip(("method", "cluster"), pair, strict=True)) for pair in product(options("method"), options("cluster"))),
    *(dict(zip(("model", "data"), pair, strict=True)) for pair in product(options("model"), options("data"))),
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(choice.values()))
def test_choices_are_configurations(choice):
    method = choice.get("method", "trd_opd")
    unset = UNSET.get(method, {})
    chosen = [f"{group}={name}" for group, name in choice.items()]
    config = composed(*chosen, *(f"{key}={value}" for key, value in unset.items()))
    assert isinstance(omega_conf_to_dataclass(config.trd), TrdConfig)
    # In place, as the launcher does: that refuses more than a resolved copy.
    resolved = copy.deepcopy(config)
    OmegaConf.resolve(resolved)
    assert resolved["trd"]["method"] == method
    assert resolved["trainer"]["default_local_dir"] == f"outputs/{method}"
    assert Path(resolved["reward"]["custom_reward_function"]["path"]).name


@pytest.mark.parametrize(("method", "key"), [(method, key) for method, keys in UNSET.items() for key in keys])
def test_what_a_method_leaves_to_the_user_is_asked_for(method, key):
    with pytest.raises(Exception, match=f"{re.escape(key)} is not set: give "):
        omega_conf_to_dataclass(composed(f"method={method}").trd)


@pytest.mark.parametrize("name", options("experiment"))
def test_experiments_are_configurations(name):
    config = composed(f"experiment={name}")
    OmegaConf.to_container(config, resolve=True)
    assert isinstance(omega_conf_to_dataclass(config.trd), TrdConfig)


@pytest.mark.parametrize("path", OVERLAYS, ids=file_id)
def test_a_run_gets_what_the_file_says(path):
    # Nothing that is composed later takes a value back.
    run = leaves(OmegaConf.to_container(composed(f"{path.parent.name}={path.stem}")))
    said = set_by(path)
    assert {key: run[key] for key in said} == said


@pytest.mark.parametrize("path", SHARED, ids=file_id)
def test_shared_files_are_begun_with_and_cannot_be_chosen(path):
    users = [other for other in path.parent.glob("[!_]*.yaml") if path.stem in first_defaults(other)]
    assert len(users) > 1
    for user in users:
        run = leaves(OmegaConf.to_container(composed(f"{path.parent.name}={user.stem}")))
        said = {key: value for key, value in set_by(path).items() if key not in set_by(user)}
        assert {key: run[key] for key in said} == said
    with pytest.raises(Exception, match=r"not set|Missing|\?\?\?"):
        omega_conf_to_dataclass(composed(f"{path.parent.name}={path.stem}").trd)


def first_defaults(path):
    return [item for item in yaml.safe_load(path.read_text(encoding="utf-8")).get("defaults", []) if item != "_self_"]


def test_keys_of_the_trd_node_are_the_fields_of_its_dataclasses():
    def compare(node, cls):
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        assert set(node) == set(fields)
        for name, kind in fields.items():
            if dataclasses.is_dataclass(kind):
                assert node[name]["_target_"] == f"{kind.__module__}.{kind.__qualname__}"
                compare(node[name], kind)

    node = yaml.safe_load(BASE.read_text(encoding="utf-8"))["trd"]
    assert node["_target_"] == f"{TrdConfig.__module__}.{TrdConfig.__qualname__}"
    compare(node, TrdConfig)


@pytest.mark.parametrize("path", [BASE, *SHARED, *OVERLAYS], ids=file_id)
def test_keys_that_are_not_ours_are_verls(path):
    # A key that verl renamed would otherwise be set in vain: files may add keys, only the command line may not.
    unknown = [key for key in set_by(path) if not key.startswith("trd.") and key not in verls()]
    unknown = [key for key in unknown if key not in upstream_config.ADDED_KEYS]
    assert not unknown, (
        f"neither verl's configuration nor ADDED_KEYS in tests/contract/upstream_config.py has {unknown}"
    )


def test_added_keys_are_set_somewhere():
    added = {key for path in (BASE, *SHARED, *OVERLAYS) for key in set_by(path)}
    assert set(upstream_config.ADDED_KEYS) <= added


@pytest.mark.parametrize("method", ["grpo", "opd"])
def test_verls_own_methods_differ_from_verl_only_where_our_files_say_so(method):
    run = leaves(OmegaConf.to_container(composed(f"method={method}", "model=tiny", "data=tiny_world", "cluster=cpu")))
    named = {f"{group}/{name}.yaml" for group, name in zip(GROUPS, (method, "tiny", "tiny_world", "cpu"), strict=True)}
    said = {key for path in (BASE, *(CONFIGS / file for file in named)) for key in set_by(path)}
    changed = {key for key in {**run, **verls()} if run.get(key, "absent") != verls().get(key, "absent")}
    # Where a file turns a null into a mapping, the null is gone.
    unsaid = {key for key in changed - said if not any(other.startswith(f"{key}.") for other in said)}
    assert not unsaid


def test_methods_are_named_as_their_files():
    for name in options("method"):
        assert set_by(CONFIGS / "method" / f"{name}.yaml")["trd.method"] == name


@pytest.mark.parametrize("path", [BASE, WORLD, *SHARED, *OVERLAYS], ids=file_id)
def test_file_opens_with_what_it_is_for(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    assert re.match(r"# \S", lines[0]), f"{path.name} needs a line that says what it is"
    if path in OVERLAYS and path.parent.name == "method":
        # What it is, and from which paper and equation.
        assert re.match(r"# \S", lines[1]), f"{path.name} needs a second line that names the source"
        assert re.search(r"arXiv \d{4}\.\d{5}|verl's own path", " ".join(lines[:2])), f"{path.name} names no source"


@pytest.mark.parametrize("path", [*SHARED, *OVERLAYS], ids=file_id)
def test_overlay_is_a_package_of_the_whole_configuration(path):
    # The group `data` is verl's: its files are the node `data`.
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert (first == "# @package _global_") is (path.parent.name != "data")


@pytest.mark.parametrize("path", [BASE, WORLD, *SHARED, *OVERLAYS], ids=file_id)
def test_comments_stand_above_and_never_behind(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if re.search(r"\S\s+#", line) and not line.lstrip().startswith("#")] == []


def undocumented(path):
    """Dotted keys of leaves above which, up to the next blank line, there is no comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []

    def visit(node, prefix):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            if isinstance(value, yaml.MappingNode):
                visit(value, f"{name}.")
            elif key.value != "_target_" and not has_comment(lines, key.start_mark.line):
                found.append(name)

    visit(yaml.compose(path.read_text(encoding="utf-8")), "")
    return found


def has_comment(lines, number):
    """Whether the block that the line stands in has a comment above it."""
    while number >= 0 and lines[number].strip():
        if lines[number].lstrip().startswith("#"):
            return True
        number -= 1
    return False


@pytest.mark.parametrize("path", [BASE, WORLD], ids=file_id)
def test_every_key_of_a_primary_file_is_explained(path):
    assert [key for key in undocumented(path) if not key.startswith(("defaults", "hydra"))] == []


def test_keys_that_overlays_add_are_explained_where_they_are_added():
    explained = set()
    for path in (BASE, *SHARED, *OVERLAYS):
        prefix = "data." if path.parent.name == "data" else ""
        explained |= set(set_by(path)) - {f"{prefix}{key}" for key in undocumented(path)}
    assert set(upstream_config.ADDED_KEYS) - explained == set()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# why\na: 1\nb: 2\n", []),
        ("# why\na: 1\n\nb: 2\n", ["b"]),
        ("c:\n  # why\n  a: 1\n\n  d:\n    e: 1\n", ["c.d.e"]),
        ("a: 1\n# why not\n", ["a"]),
    ],
)
def test_a_key_without_a_word_would_be_noticed(tmp_path, text, expected):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert undocumented(path) == expected
