"""The command `python -m recipe.trd.fit_bridge`: its file of keys, and command lines it refuses."""

import dataclasses
import re

import pytest
import yaml

from recipe.trd import fit_bridge
from recipe.trd.config.paths import CONFIG_DIR
from recipe.trd.oprd.fit_config import FitConfig


def test_command_line_and_file_are_checked_against_the_types(capsys, monkeypatch):
    shipped = yaml.safe_load((CONFIG_DIR / "fit_bridge.yaml").read_text())
    assert set(shipped) - {"defaults", "hydra"} == {field.name for field in dataclasses.fields(FitConfig)}
    for argument, message in (
        ("rank=four", "Value 'four'.*rank"),
        ("rank=0", "rank=0 must be at least 1"),
        ("teacher=???", "missing mandatory value: teacher"),
    ):
        arguments = ["student=a", "teacher=b", "train_files=[c]", "out=d", argument]
        monkeypatch.setattr("sys.argv", ["fit_bridge", *arguments])
        with pytest.raises(SystemExit) as end:
            fit_bridge.main()
        assert end.value.code == fit_bridge.REFUSED
        said = capsys.readouterr().err
        assert said.startswith("no bridge: ")
        assert re.search(message, said)
