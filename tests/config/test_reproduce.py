"""docs/reproduce.md: every setting that the page prints below a command is what the command sets."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass

from recipe.trd.preflight import unused_keys, values

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
CASES = re.findall(r"```bash\n([^`]*?)```\n\nSets (.*?)\.\n\n", PAGE, re.DOTALL)
# Those of the tiny world take keys from their model's file, which only a run knows as a default.
COMMANDS = re.findall(r"`([A-Z_]+=[^`]*? )?bash (scripts/run_(?!\w*tiny)\w[\w.]*sh)([^`]*)`", PAGE)


def composed(command):
    """The configuration of a printed command, whose script hands its overrides to `echo`."""
    words = shlex.split(command.replace("\\\n", " "))
    start = words.index("bash")
    knobs = dict(word.split("=", 1) for word in words[:start])
    environment = {"PATH": os.environ["PATH"], "PYTHON": "echo", **knobs}
    done = subprocess.run(words[start:], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, *overrides = done.stdout.splitlines()[-1].removeprefix("-m ").split(" ")
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        return compose("trd_trainer", overrides=overrides)


def test_the_page_has_commands_with_settings():
    assert len(CASES) == PAGE.count("\nSets `") >= 5
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize(("command", "settings"), CASES, ids=[re.search(r"METHOD=(\w+)", case[0])[1] for case in CASES])
def test_a_command_sets_what_the_page_says(command, settings):
    config = composed(command)
    found = re.findall(r"`([\w.]+)=([^`]*)`", settings)
    assert len(found) >= 6
    for key, printed in found:
        assert OmegaConf.select(config, key) == pytest.approx(number_or_text(printed)), key


def number_or_text(printed):
    try:
        return float(printed)
    except ValueError:
        return yaml.safe_load(printed)


@pytest.mark.parametrize(
    "command", [case[0] for case in CASES] + ["".join([*c[:1], "bash ", *c[1:]]) for c in COMMANDS]
)
def test_no_setting_of_a_command_does_nothing(command):
    config = composed(command)
    values.check(config)
    unused_keys.check(config, omega_conf_to_dataclass(config.trd))
