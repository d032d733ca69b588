"""Names use the words of docs/glossary.md; no two public classes and no two modules share a name.

The third column of the glossary's table lists words that names do not contain, each in backticks. Names are those of
modules, classes, functions, parameters, fields, configuration keys and metrics; names with a leading underscore are
free. A forbidden word is fine inside a word of the first column: `gate` is forbidden, `entropy gate` is the glossary's.
"""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
SOURCES = sorted([*ROOT.glob("recipe/**/*.py"), *ROOT.glob("verl_ext/**/*.py")])
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef

ALLOWED = {
    ("recipe/trd/data/", "row"): "a row of a source's file or of the written one",
    ("recipe/trd/data/", "rows"): "rows of a source's file or of the written one",
    ("recipe/trd/evaluate/report.py", "rows"): "rows of a printed table",
    ("recipe/trd/evaluate/tables.py", "rows"): "rows of a table",
    ("recipe/trd/compare.py", "rows"): "rows of a printed table",
    ("recipe/trd/tiny_world/splits.py", "row"): "a row of a parquet file",
    ("recipe/trd/oprd/fit_config.py", "rows"): "rows of a matrix; a key that users know",
    ("configs/fit_bridge.yaml", "rows"): "rows of a matrix; a key that users know",
    ("verl_ext/divergence/head.py", "rows"): "rows of the head's matrix, one for each token of the vocabulary",
    ("verl_ext/divergence/softmax.py", "rows"): "rows of any matrix that is searched",
    ("verl_ext/runtime/weight_files.py", "rows"): "rows of weight matrices",
}
"""A forbidden word in files with this beginning, to the reason why it is the right one there."""
SAME_CLASS: dict[str, str] = {}
"""A class that is defined twice, to the reason why."""
SAME_MODULE: dict[str, str] = {
    "worker": "of a training step in recipe.trd.training, of an engine in verl_ext.engine; both named after verl's",
}
"""A file name that exists twice, to the reason why."""


def words_of(name):
    """`_num_rows_`, `numRows` and `num rows` as `_num_rows_`: lower case, one underscore around every word."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return f"_{'_'.join(re.findall(r'[a-z0-9]+', spaced.lower()))}_"


@cache
def glossary():
    """Words of the first column, and forbidden ones with the word that stands in their place."""
    lines = GLOSSARY.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if re.fullmatch(r"\| *word *\| *means *\| *not *\|", line))
    words, forbidden = [], {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        word, _, instead = (cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|")))
        words.append(word.replace("`", ""))
        forbidden.update(dict.fromkeys(re.findall(r"`([^`]+)`", instead), word))
    return words, forbidden


def forbidden_in(name):
    """Forbidden words of a name, outside words that the glossary has itself."""
    words, forbidden = glossary()
    rest = words_of(name)
    for word in sorted((words_of(word) for word in words), key=len, reverse=True):
        if any(words_of(banned) in word and words_of(banned) != word for banned in forbidden):
            rest = rest.replace(word, "_")
    return [banned for banned in forbidden if words_of(banned) in rest]


def parameters(function):
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return [argument.arg for argument in every if argument is not None]


def public_names(tree):
    """Classes, functions, their parameters, fields and module-level constants."""
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS) and (not node.name.startswith("_") or node.name == "__init__"):
            yield from [node.name, *parameters(node)]
        if isinstance(node, ast.ClassDef):
            yield node.name
        if isinstance(node, ast.Module | ast.ClassDef):
            targets = [t for n in node.body if isinstance(n, ast.Assign) for t in n.targets]
            targets += [n.target for n in node.body if isinstance(n, ast.AnnAssign)]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def metric_names(tree):
    """Strings of the form `trd/divergence`, also those with a part that is filled in."""
    literals = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.value for node in literals if re.fullmatch(r"[a-z_]+(/[a-z0-9_@]*)+", node.value)]


def config_keys(node):
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key)
            yield from config_keys(value)
    elif isinstance(node, list):
        for value in node:
            yield from config_keys(value)


def wrong(path, names):
    """Public names with forbidden words that are not allowed in this file."""
    file = str(path.relative_to(ROOT))
    allowed = {word for place, word in ALLOWED if file.startswith(place)}
    public = sorted({name for name in names if not name.startswith("_")})
    found = {name: [word for word in forbidden_in(name) if word not in allowed] for name in public}
    return {name: words for name, words in found.items() if words}


@cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def names_in_source(path):
    tree = parse(path)
    return [path.stem, path.parent.name, *public_names(tree), *metric_names(tree)]


def test_names_use_the_words_of_the_glossary():
    found = {str(path.relative_to(ROOT)): wrong(path, names_in_source(path)) for path in SOURCES}
    assert {file: names for file, names in found.items() if names} == {}


def test_configuration_keys_use_the_words_of_the_glossary():
    keys = {path: config_keys(yaml.safe_load(path.read_text(encoding="utf-8"))) for path in CONFIGS}
    found = {str(path.relative_to(ROOT)): wrong(path, [path.stem, *names]) for path, names in keys.items()}
    assert {file: names for file, names in found.items() if names} == {}


def test_glossary_is_read_and_words_are_found():
    words, forbidden = glossary()
    assert len(words) >= 25
    assert {"rows", "ours", "theirs", "gate", "take_up", "everyones", "gone_is_fine", "hand_over"} <= set(forbidden)
    assert {"raise_fences", "tokeniser"} <= set(forbidden)
    assert forbidden_in("num_rows") == ["rows"]
    assert forbidden_in("HandOver") == ["hand_over"]
    assert forbidden_in("entropy_gate") == []
    assert forbidden_in("gate_of_entropy") == ["gate"]
    assert forbidden_in("rowspan") == []


def test_exceptions_are_still_needed():
    for place, word in ALLOWED:
        if place.endswith(".yaml"):
            assert word in (ROOT / place).read_text(encoding="utf-8")
            continue
        names = [
            name
            for path in SOURCES
            if str(path.relative_to(ROOT)).startswith(place)
            for name in public_names(parse(path))
        ]
        assert any(words_of(word) in words_of(name) for name in names), f"{place} has no {word!r} any more"


def places(names):
    """Names that exist more than once, with their files."""
    found = defaultdict(list)
    for name, path in names:
        found[name].append(str(path.relative_to(ROOT)))
    return {name: files for name, files in found.items() if len(files) > 1}


def test_no_two_public_classes_share_a_name():
    classes = [
        (node.name, path)
        for path in SOURCES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    twice = places(classes)
    assert {name: files for name, files in twice.items() if name not in SAME_CLASS} == {}
    assert set(SAME_CLASS) <= set(twice)


def test_no_two_modules_share_a_name():
    twice = places((path.stem, path) for path in SOURCES if not path.stem.startswith("__"))
    assert {name: files for name, files in twice.items() if name not in SAME_MODULE} == {}
    assert set(SAME_MODULE) <= set(twice)
