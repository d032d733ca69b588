"""Limits that keep the code readable. An exception is listed here, with its reason."""

import ast
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_FILE_LINES, MAX_TEST_LINES, MAX_FUNCTION_LINES = 400, 500, 50
LONG_FUNCTIONS: dict[str, str] = {
    "verl_ext/divergence/kernels.py::_visit": "a kernel: one pass over memory, whose arguments take half of it",
}
"""`file::function` to the reason why it may be longer."""


def tracked():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


SOURCES = sorted([*ROOT.glob("recipe/**/*.py"), *ROOT.glob("verl_ext/**/*.py")])
TESTS = sorted(ROOT.glob("tests/**/*.py"))
FILES = pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))


@cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def functions_of(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@FILES
def test_files_and_functions_are_short(path):
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= (MAX_TEST_LINES if path in TESTS else MAX_FILE_LINES)
    lengths = {f"{path.relative_to(ROOT)}::{f.name}": f.end_lineno - f.lineno + 1 for f in functions_of(parse(path))}
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES and name not in LONG_FUNCTIONS} == {}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_public_is_documented(path):
    tree = parse(path)
    public = [node for node in tree.body if isinstance(node, ast.ClassDef) or node in functions_of(tree)]
    missing = [node.name for node in public if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert ast.get_docstring(tree)
    assert missing == []


def test_no_file_knows_the_machine_it_was_written_on():
    places = [f"/{name}/".encode() for name in ("work", "home", "root", "Users")]
    assert [path for path in tracked() if any(place in path.read_bytes() for place in places)] == []


def test_recipe_has_no_init_and_no_test_folder_has():
    assert not (ROOT / "recipe" / "__init__.py").exists()
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_exceptions_are_still_needed():
    names = {f"{path.relative_to(ROOT)}::{f.name}" for path in [*SOURCES, *TESTS] for f in functions_of(parse(path))}
    assert set(LONG_FUNCTIONS) <= names
