"""Prepare data: `python -m recipe.trd.data prepare NAME [options]`; `list` prints the sets that have names."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from recipe.trd.data.options import Columns, Options
from recipe.trd.data.sources import SOURCES, table

CUSTOM = "custom"
REFUSED = 2
"""Exit code when nothing was prepared; the reason is one line on stderr."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    if parsed.command == "list":
        for row in table():
            print("| " + " | ".join(row) + " |")
        return 0
    # Imported here, so that `list` and `--help` answer at once.
    from recipe.trd.data.prepare import prepare

    try:
        card = prepare(options(parsed))
    except (OSError, ValueError) as error:
        print(f"nothing prepared: {error}", file=sys.stderr)
        return REFUSED
    print(card.as_markdown())
    print(f"files and card: {parsed.out / card.name}")
    return 0


def options(parsed: argparse.Namespace) -> Options:
    """Options from what was parsed.

    Raises:
        ValueError: an option that does not go with the others.
    """
    columns = {key: getattr(parsed, f"{key}_column") for key in ("prompt", "answer", "solution", "id")}
    columns |= {"data_source": parsed.data_source, "kind": parsed.kind}
    if parsed.name == CUSTOM:
        needed = {"--from": parsed.from_path, "--prompt-column": parsed.prompt_column}
        needed |= {"--answer-column": parsed.answer_column, "--data-source": parsed.data_source}
        if missing := [flag for flag, value in needed.items() if value is None]:
            raise ValueError(f"custom needs {', '.join(missing)}")
        own = Columns(**columns | {"kind": parsed.kind or "math"})
    elif given := [key for key, value in {**columns, "as": parsed.save_as}.items() if value is not None]:
        raise ValueError(f"columns and names are those of {parsed.name}; {', '.join(given)} go with `prepare custom`")
    else:
        own = None
    return Options(
        name=parsed.save_as or parsed.name,
        columns=own,
        against=_names(parsed.against),
        template_kwargs=_mapping(parsed.template_kwargs),
        splits=_names(parsed.splits) or (),
        **{key: getattr(parsed, key) for key in ("out", "from_path", "system", "instruction", "tokenizer")},
        **{key: getattr(parsed, key) for key in ("max_prompt_length", "ngram", "min_overlap", "max_tests")},
        **{key: getattr(parsed, key) for key in ("max_rows", "val_size", "seed", "keep_flagged")},
    )


def _names(value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    return () if value == "none" else tuple(name.strip() for name in value.split(",") if name.strip())


def _mapping(value: str) -> dict[str, object]:
    try:
        mapping = json.loads(value)
    except ValueError as error:
        raise ValueError(f"--template-kwargs {value}: not JSON ({error})") from error
    if not isinstance(mapping, dict):
        raise ValueError(f"--template-kwargs {value}: not a mapping")
    return mapping


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipe.trd.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names of the sets, where they are on the hub, splits, rows, licences")
    add = commands.add_parser("prepare", help="files and card of a set, or of rows of your own").add_argument
    add("name", choices=[*SOURCES, CUSTOM], metavar="NAME", help=f"{', '.join(SOURCES)}, or {CUSTOM}")
    add("--from", dest="from_path", type=Path, help="a copy: file or folder of parquet, arrow, jsonl, json or csv")
    add("--out", type=Path, default=Path("data"), help="files go to OUT/NAME (default: %(default)s)")
    add("--splits", help="train, test or both, with a comma (default: what the set has)")
    add("--system", help="a system message before the problem")
    add("--instruction", help="what follows every problem; '' for nothing (default: by kind, see docs/data.md)")
    add("--tokenizer", help="the student's: counts prompts in tokens, with its chat template")
    add(
        "--max-prompt-length", type=int, help="longer prompts are left out, in tokens; the run's data.max_prompt_length"
    )
    add("--template-kwargs", default="{}", help="JSON for the chat template, as data.apply_chat_template_kwargs")
    add("--against", help="evaluation sets or prepared files, with commas, or none (default: all of the kind)")
    add("--ngram", type=int, default=13, help="words in a row that count as shared (default: %(default)s)")
    add("--min-overlap", type=float, default=0.5, help="share of an evaluation problem's words (default: %(default)s)")
    add("--keep-flagged", action="store_true", help="keep rows that the set itself marks as wrong or ungradable")
    add("--max-tests", type=int, help="first tests of every program that are kept (default: all)")
    add("--max-rows", type=int, help="training rows after shuffling (default: all)")
    add("--val-size", type=int, help="training rows that go to val.parquet (default: 256, at most a tenth)")
    add("--seed", type=int, default=0, help="of the order of training rows (default: %(default)s)")
    add("--prompt-column", help="custom: the problem")
    add("--answer-column", help="custom: the answer, or the tests of a program as JSON")
    add("--solution-column", help="custom: a worked solution, if there is one")
    add("--id-column", help="custom: a name of the row, if there is one")
    add("--data-source", help="custom: the column data_source, by which verl groups metrics")
    add("--kind", choices=["math", "code"], help="custom (default: math)")
    add("--name", dest="save_as", help="custom: files go to OUT/NAME (default: custom)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
