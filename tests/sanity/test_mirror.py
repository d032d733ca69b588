"""tests/unit mirrors the source: tests/unit/<package>/<room>/test_<module>*.py tests a module of that room."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"trd": ROOT / "recipe" / "trd", "verl_ext": ROOT / "verl_ext"}
UNIT = ROOT / "tests" / "unit"
FILES = sorted(UNIT.rglob("test_*.py"))
OTHERS = {
    "verl_ext/divergence/test_extending.py": "runs the example of docs/extending.md",
}
"""A test file without a module of its name, to the reason why."""


def modules_of(test):
    """The folder of the source that a test file mirrors, as names of its modules; `command` stands for `__main__`."""
    package, *rooms = test.relative_to(UNIT).parts[:-1]
    stems = {path.stem for path in PACKAGES[package].joinpath(*rooms).glob("*.py")} - {"__init__"}
    return {"command" if stem == "__main__" else stem for stem in stems}


@pytest.mark.parametrize("test", FILES, ids=lambda test: str(test.relative_to(UNIT)))
def test_each_test_file_has_its_module(test):
    name = str(test.relative_to(UNIT))
    subject = test.stem.removeprefix("test_")
    found = [module for module in modules_of(test) if f"{subject}_".startswith(f"{module}_")]
    assert found or name in OTHERS, f"{name}: none of {sorted(modules_of(test))}"


def test_exceptions_are_still_needed():
    assert [name for name in OTHERS if not (UNIT / name).is_file()] == []
