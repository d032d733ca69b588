"""Settings that would do nothing in this method: refused, with what would make them act."""

from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from recipe.trd.config import acting_keys
from recipe.trd.config.paths import CONFIG_DIR
from recipe.trd.config.schema import TrdConfig

GROUPS = ("method", "model", "data", "cluster")
"""Groups whose choice is a default; an experiment is a change."""


def check(config: DictConfig, trd: TrdConfig) -> None:
    """Refuse the first key that does not act in this method and has another value than its default.

    Args:
        config: of the run, before preflight fills anything in.
        trd: its node `trd`.

    Raises:
        ValueError: the message names the key, its value and what would make it act.
    """
    silent = [(key, rule) for rule in acting_keys.rules() if not rule.acts(trd) for key in rule.keys]
    defaults = _defaults(config)
    # Defaults that are interpolations follow what they point to in this run.
    expected = config.copy()
    OmegaConf.set_readonly(expected, False)
    OmegaConf.set_struct(expected, False)
    for key, _ in silent:
        if _has(config, key) and _has(defaults, key):
            OmegaConf.update(expected, key, _raw(defaults, key), merge=False)
    for key, rule in silent:
        if not (_has(config, key) and _has(defaults, key)):
            continue
        for name, given, default in _leaves(key, OmegaConf.select(config, key), OmegaConf.select(expected, key)):
            if given != default:
                needs = "this package's own loss, trd.upstream=false" if _is_upstream(trd, key) else rule.needs
                raise ValueError(
                    f"{name}={given} does nothing in method {trd.method}: it needs {needs}; leave it at {default}"
                )


def _defaults(config: DictConfig) -> DictConfig:
    """The configuration of the same groups without any change."""
    if GlobalHydra.instance().is_initialized():
        choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {"method": config.trd.method}
        overrides = [f"{group}={choices[group]}" for group in GROUPS if choices.get(group)]
        loader = GlobalHydra.instance().config_loader()
        return loader.load_configuration("trd_trainer", overrides, run_mode=RunMode.RUN)
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        try:
            return compose("trd_trainer", overrides=[f"method={config.trd.method}"])
        except MissingConfigException:
            # A method of the user's own, composed elsewhere: a preset with no keys but the shared ones stands in.
            return compose("trd_trainer", overrides=["method=trd_opd"])


def _is_upstream(trd: TrdConfig, key: str) -> bool:
    return trd.upstream and key.startswith("trd.objective.")


def _has(config: DictConfig, key: str) -> bool:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or node._is_none() or part not in node:
            return False
        node = node._get_node(part)
    return True


def _raw(config: DictConfig, key: str) -> Any:
    *parents, name = key.split(".")
    node = OmegaConf.select(config, ".".join(parents))
    return node._get_node(name)


def _leaves(key: str, given: Any, default: Any) -> list[tuple[str, Any, Any]]:
    """Name, value and default of every value in a node; of the value itself where it is none."""
    if not isinstance(given, DictConfig) or not isinstance(default, DictConfig):
        return [(key, given, default)]
    return [leaf for name in given for leaf in _leaves(f"{key}.{name!s}", given.get(name), default.get(name))]
