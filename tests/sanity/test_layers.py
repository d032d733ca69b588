"""Who may import whom: the rules of `.importlinter`, and how many imports point up."""

import configparser
import contextlib
import io
from functools import cache
from pathlib import Path

import grimp
from importlinter import cli

ROOT = Path(__file__).parents[2]
RULES = ROOT / ".importlinter"
PACKAGES = ("recipe.trd", "verl_ext")


def lint_imports(rules):
    """Whether all contracts are kept, and what import-linter prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = cli.lint_imports(config_filename=str(rules), no_cache=True, no_logo=True)
    return status == 0, printed.getvalue()


@cache
def graph():
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def layers_of(package):
    """Rooms and files directly in the package, by line of `.importlinter` from the top."""
    rules = configparser.ConfigParser()
    rules.read(RULES, encoding="utf-8")
    (section,) = [rules[name] for name in rules.sections() if rules[name].get("containers") == package]
    lines = section["layers"].strip().splitlines()
    return {name.strip(): depth for depth, line in enumerate(lines) for name in line.replace(":", "|").split("|")}


def room_of(module):
    """`("recipe.trd", "config")` for `recipe.trd.config.schema`."""
    package = next(name for name in PACKAGES if f"{module}.".startswith(f"{name}."))
    return package, module.removeprefix(package).strip(".").partition(".")[0]


def depth_of(module):
    package, room = room_of(module)
    return PACKAGES.index(package), layers_of(package)[room] if room else -1


def arrows():
    """Every import of one room in another, as pairs of modules."""
    imports = (
        (importer, imported)
        for importer in graph().modules
        for imported in graph().find_modules_directly_imported_by(importer)
    )
    return [(importer, imported) for importer, imported in imports if room_of(importer) != room_of(imported)]


def test_every_rule_is_kept():
    kept, printed = lint_imports(RULES)
    assert kept, printed


def test_no_import_points_up_or_sideways():
    assert arrows()
    assert [(importer, imported) for importer, imported in arrows() if depth_of(importer) >= depth_of(imported)] == []


def test_a_circle_and_an_import_through_another_module_are_found(tmp_path, monkeypatch):
    package = tmp_path / "made_up"
    package.mkdir()
    (package / "__init__.py").touch()
    sources = {"pure": "import made_up.between", "between": "import made_up.above", "above": "import verl"}
    for name, source in sources.items():
        (package / f"{name}.py").write_text(source)
    rules = tmp_path / "rules.ini"
    rules.write_text(
        "[importlinter]\nroot_package = made_up\ninclude_external_packages = True\n"
        "[importlinter:contract:a]\nname = pure\ntype = forbidden\n"
        "source_modules = made_up.pure\nforbidden_modules = verl\n"
        "[importlinter:contract:b]\nname = circles\ntype = acyclic_siblings\nancestors = made_up\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    kept, printed = lint_imports(rules)
    assert not kept
    assert "pure BROKEN" in printed
    assert "circles KEPT" in printed
    (package / "above.py").write_text("import made_up.pure\n")
    kept, printed = lint_imports(rules)
    assert "circles BROKEN" in printed
