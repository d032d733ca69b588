"""docs/upstream.md says what the contract data say, and the data know every name that is imported from verl or vLLM."""

import ast
from pathlib import Path

import pytest

from contract import upstream, upstream_changes, upstream_doc, upstream_texts

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("recipe/**/*.py"), *ROOT.glob("verl_ext/**/*.py")])
UPSTREAM = ("verl", "vllm", "transfer_queue")


def test_page_is_current():
    written = (ROOT / "docs" / "upstream.md").read_text(encoding="utf-8")
    assert written == upstream_doc.page(), "run `make docs`"


def imported_names(path):
    """Last parts of the names that a file imports from verl and vLLM."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in UPSTREAM:
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.partition(".")[0] in UPSTREAM]
            # `import verl` alone loads the plug-ins and uses nothing.
            yield from (name.rpartition(".")[2] for name in names if name not in UPSTREAM)


def unlisted_names(file):
    listed = {part for name in upstream_doc.paths_of(file) for part in name.split(".")}
    texts = " ".join(entry.text for entry in upstream_texts.TEXTS.get(file, ()))
    return [name for name in imported_names(ROOT / file) if name not in listed and name not in texts]


def test_every_name_from_verl_and_vllm_is_listed():
    found = {file: unlisted_names(file) for file in (str(path.relative_to(ROOT)) for path in SOURCES)}
    missing = {file: names for file, names in found.items() if names}
    assert not missing, "list what is used of verl and vLLM in tests/contract/upstream.py"


def test_files_with_overrides_exist_and_say_when_they_can_go():
    overriding = set(upstream_doc.overrides_by_file())
    assert [file for file in upstream_doc.files() if not (ROOT / file).is_file()] == []
    assert overriding - set(upstream_changes.GOES_WHEN) == set()


@pytest.mark.parametrize("change", upstream_changes.CHANGES, ids=lambda change: change.name)
def test_a_change_touches_what_it_says(change):
    paths = [path for file in upstream_doc.files() for path in upstream_doc.paths_of(file)]
    stale = [start for start in change.touches if not any(f"{path}.".startswith(f"{start}.") for path in paths)]
    assert stale == []


@pytest.mark.parametrize(
    ("path", "private"),
    [("verl.a.B.c", False), ("verl.a.B.__init__", False), ("verl.a.B._c", True), ("verl._a.B.c", True)],
)
def test_private_is_what_begins_with_one_underscore(path, private):
    assert upstream_doc.is_private(path) is private


def test_file_of_an_override():
    method = upstream.Override("verl.a", "recipe.trd.training.worker.TrdWorker.update_actor", "")
    function = upstream.Override("verl.a", "verl_ext.cpu.vllm_weights.keep_weight", "")
    assert upstream_doc.file_of(method) == "recipe/trd/training/worker.py"
    assert upstream_doc.file_of(function) == "verl_ext/cpu/vllm_weights.py"
