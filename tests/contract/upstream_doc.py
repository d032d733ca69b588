"""Prints docs/upstream.md: what this repository overrides and uses of verl and vLLM, file by file.

`make docs` calls `python -m contract.upstream_doc` in tests/ and replaces the page by what it prints.
"""

import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby

from contract.upstream import ATTRIBUTES, OVERRIDES, SYMBOLS, VERL_VERSION, VLLM_VERSIONS, Override
from contract.upstream_changes import CHANGES, GOES_WHEN, Change
from contract.upstream_config import ADDED_KEYS, CONFIG_KEYS
from contract.upstream_texts import TEXTS

WIDTH = 120


def is_private(path: str) -> bool:
    """Whether some part of a dotted path begins with one underscore; `__init__` is public."""
    return any(part.startswith("_") and not part.startswith("__") for part in path.split("."))


def file_of(override: Override) -> str:
    """The file of this repository that holds an override."""
    parts = override.override.split(".")
    depth = next(number for number, part in enumerate(parts) if part != part.lower() or number == len(parts) - 1)
    return "/".join(parts[:depth]) + ".py"


def overrides_by_file() -> dict[str, list[Override]]:
    """Overrides with the file that holds them."""
    found: dict[str, list[Override]] = {}
    for override in OVERRIDES:
        found.setdefault(file_of(override), []).append(override)
    return found


def files() -> list[str]:
    """Every file of this repository that the contract knows, without configuration."""
    return sorted({*SYMBOLS, *ATTRIBUTES, *TEXTS, *overrides_by_file(), *GOES_WHEN})


def paths_of(file: str) -> list[str]:
    """Dotted paths that a file overrides or uses."""
    return [
        *(entry.path for entry in overrides_by_file().get(file, ())),
        *(entry.call.partition("(")[0] for entry in SYMBOLS.get(file, ())),
        *(entry.path for entry in ATTRIBUTES.get(file, ())),
        *(entry.path for entry in TEXTS.get(file, ())),
    ]


def changes_of(file: str) -> list[Change]:
    """Changes under way that touch a file."""
    return [
        change
        for change in CHANGES
        if any(f"{path}.".startswith(f"{start}.") for path in paths_of(file) for start in change.touches)
    ]


def paragraph(text: str) -> str:
    """One wrapped paragraph, or one wrapped entry of a list; a long name is not broken."""
    indent = "  " if text.startswith("- ") else ""
    wrapped = textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrapped)


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(paragraph(f"- {line}") for line in lines)


def marked(path: str, shown: str | None = None) -> str:
    """A name as code, with `(private)` where a release may change it without notice."""
    return f"`{shown or path}`" + (" (private)" if is_private(path) else "")


def introduction() -> Iterator[str]:
    """Title, counts and how to read the page."""
    private = sum(is_private(override.path) for override in OVERRIDES)
    yield "# What we override and use of verl and vLLM"
    yield "<!-- Written by `make docs` from tests/contract/upstream*.py; do not edit. -->"
    yield paragraph(
        f"verl {VERL_VERSION} is installed as released: none of its files is copied or edited, and the package "
        "registers itself through verl's registries, plug-ins and class names in the configuration. But verl has no "
        f"hook for everything that distillation on rewritten trajectories needs. Of {len(OVERRIDES)} functions and "
        f"methods that we override, {private} are private (a leading underscore): a release of verl may change them "
        "without notice. That is why the version is pinned."
    )
    yield paragraph(
        "`tests/contract/test_upstream.py` checks every entry of this page against the installed packages (vLLM "
        f"{' and '.join(VLLM_VERSIONS)}), by import and signature, and the parts that no signature shows in the "
        "source. An upgrade that breaks one fails there, with a sentence that names the file and what it needs."
    )
    yield paragraph(
        "On a GPU two things are replaced in place: the entry `vllm` in verl's registries of replicas and of rollouts "
        "(the second is the private `_ROLLOUT_REGISTRY`), and `forward` of the Hugging Face models that are trained or "
        "teach, which is wrapped so that it can return hidden states. Functions are replaced in `verl_ext/cpu/` only, "
        "which acts with `VERL_PLATFORM=cpu`."
    )


def expected_changes() -> Iterator[str]:
    """The section on changes that are under way."""
    yield "## Changes under way upstream"
    yield paragraph(
        "Numbers are issues and pull requests of verl, and of vLLM where it says so, as of autumn 2026. None is in "
        f"{VERL_VERSION}."
    )
    lines = []
    for change in CHANGES:
        touched = [f"`{file}`" for file in files() if change in changes_of(file)]
        where = f" Touches {', '.join(touched)}." if touched else ""
        lines.append(f"**{change.name}** ({change.refs}) {change.what}. Here: {change.then}.{where}")
    yield bullets(lines)


def of_file(file: str) -> Iterator[str]:
    """The section of a file."""
    yield f"### `{file}`"
    notes = []
    if file in GOES_WHEN:
        notes.append(f"No longer needed when {GOES_WHEN[file]}")
    if changes_of(file):
        notes.append(f"Affected by: {', '.join(change.name for change in changes_of(file))}.")
    if notes:
        yield paragraph(" ".join(notes))
    overrides = overrides_by_file().get(file, [])
    for (base, subclass), group in groupby(overrides, lambda o: (o.path.rpartition(".")[0], o.override.split(".")[-2])):
        yield paragraph(f"`{subclass}` overrides, of `{base}`:")
        yield bullets(f"{marked(o.path, o.path.rpartition('.')[2])}: {o.why}" for o in group)
    if file in SYMBOLS:
        yield "Calls, subclasses or registers with:"
        yield bullets(f"{marked(entry.call.partition('(')[0], entry.call)}: {entry.why}" for entry in SYMBOLS[file])
    if file in ATTRIBUTES:
        yield "Reads or sets:"
        yield bullets(f"{marked(entry.path)}: {entry.why}" for entry in ATTRIBUTES[file])
    if file in TEXTS:
        yield "Relies on details of the source, which are private:"
        yield bullets(f"`{entry.text}` in `{entry.path}`: {entry.why}" for entry in TEXTS[file])


def configuration_keys() -> Iterator[str]:
    """The section on verl's configuration."""
    yield "## Keys of verl's configuration"
    yield "Keys that our code reads or checks, by node:"
    yield bullets(f"`{node}`: {', '.join(f'`{key}`' for key in keys)}" for node, keys in CONFIG_KEYS.items())
    yield "Keys that our YAML files add, and who reads them:"
    readers = {"recipe": "this repository"}
    yield bullets(f"`{key}`: {readers.get(reader, f'`{reader}`')}" for key, reader in ADDED_KEYS.items())


def page() -> str:
    """The whole page."""
    sections = [*introduction(), *expected_changes(), "## File by file"]
    for file in files():
        sections.extend(of_file(file))
    return "\n\n".join([*sections, *configuration_keys()]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
