"""Markdown: lines of at most 120 characters, links that lead somewhere, and commands and paths that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINE = 120
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")])
TEXTS = sorted(
    path
    for pattern in ("recipe/**/*.py", "verl_ext/**/*.py", "scripts/**/*", "configs/**/*.yaml", "benchmarks/*.py")
    for path in ROOT.glob(pattern)
    if path.is_file() and path.suffix in (".py", ".sh", ".yaml")
)
FOLDERS = "recipe/trd|verl_ext|tests|configs|docs|scripts|benchmarks|requirements"
NOT_HERE = {
    "configs/method/opd_total_variation.yaml": "the reader of docs/extending.md writes it",
    "configs/method/trd_opd_graded.yaml": "the reader of docs/extending.md writes it",
    "docs/advance/ppo_lora": "of verl",
    "docs/algo/opd.md": "of verl",
    "verl_ext.cpu.device": "made by verl_ext/cpu/platform.py",
}
"""Paths and modules that a text names and that are no files of this repository, to the reason why."""
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def without_code(text):
    """The text without fenced blocks and inline code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(page):
    """Anchors of the headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def can_be_broken(line):
    """Not a row of a table, and with a space at which it could be broken within the limit."""
    return not line.startswith("|") and " " in line[: MAX_LINE + 1].strip().removeprefix("- ")


@EACH_PAGE
def test_lines_are_short(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert {n: line for n, line in enumerate(lines, 1) if len(line) > MAX_LINE and can_be_broken(line)} == {}


def problem_of_link(page, target):
    """What is wrong with a link, or None."""
    if re.match(r"[a-z]+:", target):
        return None
    path, _, anchor = target.partition("#")
    linked = (page.parent / path).resolve() if path else page
    if not linked.exists():
        return f"{target}: no such file"
    if anchor and anchor not in anchors(linked):
        return f"{target}: no such heading"
    return None


@EACH_PAGE
def test_links_lead_somewhere(page):
    text = without_code(page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r"(?:src|srcset|href)=\"([^\"\s]+)", text)
    assert [problem for target in targets if (problem := problem_of_link(page, target))] == []


def is_command(module):
    """Whether `python -m` can run it."""
    place = ROOT / module.replace(".", "/")
    return place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()


def found_in_texts(find):
    """What `find` finds in the text of each page and source, with the file; empty where all is well."""
    found = {str(path.relative_to(ROOT)): find(path.read_text(encoding="utf-8")) for path in [*PAGES, *TEXTS]}
    return {name: wrong for name, wrong in found.items() if wrong}


def missing_commands(text):
    modules = re.findall(r"python3? -m ((?:recipe|verl_ext|benchmarks)[\w.]*\w)", text)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    wanted = re.findall(r"`make ([a-z-]+)`", text)
    return [name for name in modules if not is_command(name)] + [name for name in wanted if name not in targets]


def test_commands_exist():
    assert found_in_texts(missing_commands) == {}


def named_paths(text):
    """Paths from the root of the repository, braces expanded; those with a placeholder are left out."""
    for path in re.findall(rf"(?<![\w/.\-$}}])(?:{FOLDERS})/[\w./{{}},*<>-]*", text):
        head, brace, rest = path.partition("{")
        inside, _, tail = rest.partition("}")
        for name in inside.split(",") if brace else [""]:
            expanded = f"{head}{name.strip()}{tail}".rstrip(".,/")
            if "<" not in expanded and "{" not in expanded:
                yield expanded


def missing_paths(text):
    return [name for name in set(named_paths(text)) - set(NOT_HERE) if not list(ROOT.glob(name))]


def test_paths_exist():
    assert found_in_texts(missing_paths) == {}


def is_file_or_folder(name):
    place = ROOT / name.replace(".", "/")
    return place.is_dir() or place.with_suffix(".py").is_file()


def missing_modules(text):
    """Dotted names of modules, or of something in a file, that are not there."""
    named = set(re.findall(r"\b(?:recipe\.trd|verl_ext)(?:\.[a-z]\w*)+", text))
    in_files = {name for name in named if (ROOT / f"{name.rpartition('.')[0].replace('.', '/')}.py").is_file()}
    return sorted(name for name in named - in_files - set(NOT_HERE) if not is_file_or_folder(name))


def test_modules_exist():
    assert found_in_texts(missing_modules) == {}


def test_folders_of_contributing_are_those_of_the_tree():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w/]+)/` \|", text, re.MULTILINE)
    rooms = {path.parent for pattern in ("recipe/trd/*/*.py", "verl_ext/*/*.py") for path in ROOT.glob(pattern)}
    tests = {path for path in ROOT.glob("tests/*") if path.is_dir() and list(path.rglob("test_*.py"))}
    expected = {str(path.relative_to(ROOT)) for path in rooms | tests} | {"recipe/trd", "configs"}
    assert sorted(listed) == sorted(expected)


def test_what_is_wrong_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One `two`: three!\n\n```bash\n# no heading\n```\n")
    assert anchors(page) == {"one-two-three"}
    assert problem_of_link(page, "#one-two-three") is None
    assert problem_of_link(page, "#no-heading") == "#no-heading: no such heading"
    assert problem_of_link(page, "other.md") == "other.md: no such file"
    assert can_be_broken("word " * 30)
    assert not can_be_broken("| word " * 30)
    assert not can_be_broken("- https://" + "a" * 130)
    assert missing_commands("`python -m recipe.trd.config`, `make nothing`") == ["recipe.trd.config", "nothing"]
    assert missing_modules("recipe.trd.main.run, recipe.trd.no, verl_ext.engine.no.thing") == [
        "recipe.trd.no",
        "verl_ext.engine.no.thing",
    ]
    assert missing_paths("docs/extending.md docs/no.md") == ["docs/no.md"]
    assert list(named_paths("see docs/{a,b}.md, tests/<x>/y, /tmp/docs/c.md")) == ["docs/a.md", "docs/b.md"]
