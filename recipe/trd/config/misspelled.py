"""What a misspelled key or choice on the command line was probably meant to be."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig

from recipe.trd.config.paths import CONFIG_DIR

CUTOFF = 0.6
"""Similarity from which on a name is worth a suggestion; difflib's own default."""


def suggestions(arguments: Sequence[str]) -> list[str]:
    """A line for every argument whose key or choice does not exist.

    Args:
        arguments: of the command line; flags are passed over.

    Returns:
        For example `trd.rewrite.temprature is no key; did you mean trd.rewrite.temperature?`.
    """
    try:
        overrides = OverridesParser.create().parse_overrides([one for one in arguments if not one.startswith("-")])
    except HydraException:
        return []
    groups = {path.name: sorted(file.stem for file in path.glob("[!_]*.yaml")) for path in CONFIG_DIR.iterdir()}
    choices = {name: files for name, files in groups.items() if files}
    wrong = [line for one in overrides if one.key_or_group in choices for line in _wrong_choice(one, choices)]
    chosen = [one for one in overrides if one.key_or_group in choices and not _wrong_choice(one, choices)]
    keys = list(_keys(_composed([str(one.input_line) for one in chosen])))
    for one in overrides:
        key = one.key_or_group
        is_known = key in choices or key in keys or one.is_add() or "/" in key
        if not is_known and (nearest := _nearest(key, [*keys, *choices])):
            wrong.append(f"{key} is no key; did you mean {nearest}?")
    return wrong


def _wrong_choice(one: Override, choices: dict[str, list[str]]) -> list[str]:
    value, files = str(one.value()), choices[one.key_or_group]
    if isinstance(one.value(), list) or value in files or Path(value).name.startswith("_"):
        return []
    nearest = _nearest(value, files)
    hint = f"did you mean {nearest}?" if nearest else f"choose from {', '.join(files)}"
    return [f"{one.key_or_group}={value} is not there; {hint}"]


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that is most alike: as a whole, else by its last part."""
    if found := get_close_matches(name, known, n=1, cutoff=CUTOFF):
        return found[0]
    last = {key.rsplit(".", 1)[-1]: key for key in reversed(known)}
    found = get_close_matches(name.rsplit(".", 1)[-1], list(last), n=1, cutoff=CUTOFF)
    return last[found[0]] if found else None


def _composed(overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        return compose("trd_trainer", overrides=overrides)


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in config:
        key = f"{prefix}{name!s}"
        yield key
        node = config._get_node(name)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from _keys(node, f"{key}.")
