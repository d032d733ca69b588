"""The steps of a preparation, in their order.

Training rows: read, map, one row for each problem, drop evaluation problems, shuffle, split, drop long prompts, write.
Evaluation rows keep their order and their number: only what cannot be used at all, or is too long, is left out.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from recipe.trd.data import dedup, lengths, mathematics, preparation_card, prepared_file, programs, reading
from recipe.trd.data.decontaminate import EvaluationIndex, EvaluationProblem
from recipe.trd.data.items import FlaggedRow, Item, Row, UnusableRow
from recipe.trd.data.options import Columns, Options
from recipe.trd.data.preparation_card import Card, SplitCard
from recipe.trd.data.sources import EVALUATION_SETS, INSTRUCTIONS, MATH, SOURCES, TEST, TRAIN, Source

DEFAULT_VAL_SIZE = 256
"""Rows of val.parquet; a tenth of all rows if that is less."""


@dataclass(frozen=True)
class _Job:
    """Shared by all steps of one preparation."""

    options: Options
    source: Source
    tokenizer: PreTrainedTokenizerBase | None
    compared: list[EvaluationProblem] = field(default_factory=list)
    """Evaluation problems that training rows are compared with."""


def prepare(options: Options) -> Card:
    """Prepare a set: files and card in `<out>/<name>`.

    Raises:
        ValueError: something is missing or makes no sense; the message says what to do.
        OSError: a file cannot be read or written.
    """
    source = SOURCES[options.name] if options.columns is None else custom_source(options.columns)
    splits = options.splits or tuple(source.splits)
    if unknown := [split for split in splits if split not in source.splits]:
        raise ValueError(f"--splits: {options.name} has {', '.join(source.splits)}, not {', '.join(unknown)}")
    job = _Job(options, source, None if options.tokenizer is None else lengths.load_tokenizer(options.tokenizer))
    rows = _open(job, splits)
    if TRAIN in rows:
        job.compared.extend(_evaluation_problems(job, own_test=TEST in rows))
    result = Card(options.name, source.hub, source.license, preparation_card.settings(asdict(options)), None)
    # The test split first: training rows are compared with it as well.
    for split in sorted(rows, key=lambda split: split == TRAIN):
        origin, raw = rows[split]
        part = result.splits[split] = SplitCard(origin)
        items = _items(raw, job, part)
        if split == TRAIN:
            _prepare_train(items, job, part)
        else:
            if TRAIN in rows and options.against != ():
                items = _noting(items, job)
            _write({split: items}, job, part)
        part.check()
    if TRAIN in rows:
        result.compared_with = dict(Counter(problem.set for problem in job.compared))
    result.save(options.out / options.name)
    return result


def custom_source(columns: Columns) -> Source:
    """Rows of your own as a source."""
    row = partial(
        mathematics.math_row,
        problem=columns.prompt,
        answer=columns.answer,
        solution=columns.solution,
        id_column=columns.id,
    )
    return Source(
        hub="rows of your own",
        row=row if columns.kind == MATH else partial(_custom_program, as_answer=row),
        data_source=columns.data_source,
        splits={TRAIN: "train"},
        kind=columns.kind,
        license="yours",
    )


def _custom_program(row: Row, *, as_answer: partial[Item]) -> Item:
    item = as_answer(row)
    tests = programs.custom_tests(item.ground_truth)
    return replace(item, ground_truth=tests, instruction=programs.instruction(tests))


def _open(job: _Job, splits: Sequence[str]) -> dict[str, tuple[str, Iterator[Any]]]:
    """Split to where its rows come from, and the rows."""
    source, path = job.source, job.options.from_path
    if path is None:
        return {split: ("the hub", reading.hub_rows(job.options.name, source, split)) for split in splits}
    files = reading.local_files(path, {split: source.splits[split] for split in splits}, config=source.config)
    return {
        split: (", ".join(path.name for path in paths), reading.files_rows(paths)) for split, paths in files.items()
    }


def _items(rows: Iterable[Any], job: _Job, part: SplitCard) -> Iterator[Item]:
    """Rows that can be used; the others are counted.

    Raises:
        ValueError: there were rows, and none could be used; or there was none at all.
    """
    options = job.options
    num_usable = 0
    columns: list[str] = []
    for index, row in enumerate(rows):
        part.read += 1
        try:
            if not isinstance(row, dict):
                raise UnusableRow("not a row but a single value or a broken line")
            columns = columns or sorted(map(str, row))
            item = job.source.row(row)
        except FlaggedRow as flagged:
            if not options.keep_flagged:
                part.dropped[str(flagged)] += 1
                continue
            item = flagged.item
        except UnusableRow as reason:
            part.dropped[str(reason)] += 1
            continue
        if options.max_tests is not None and job.source.kind != MATH:
            item = replace(item, ground_truth=programs.limit_tests(item.ground_truth, options.max_tests))
        num_usable += 1
        yield replace(item, index=index)
    if not num_usable:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in part.dropped.most_common(3))
        why = f"none of {part.read} rows can be used: {reasons}; the columns are {columns}" if part.read else "no rows"
        raise ValueError(f"{options.name}, {part.origin}: {why}")


def _noting(items: Iterable[Item], job: _Job) -> Iterator[Item]:
    """The same items; their problems are added to those that training rows are compared with."""
    for item in items:
        job.compared.append(EvaluationProblem(job.options.name, item.id or str(item.index), item.problem))
        yield item


def _evaluation_problems(job: _Job, *, own_test: bool) -> Iterator[EvaluationProblem]:
    """Problems of the sets that training rows are compared with: prepared ones, else from the hub.

    Raises:
        ValueError: some are neither prepared nor on the hub; the message names them all.
    """
    options = job.options
    missing = []
    for name in EVALUATION_SETS[job.source.kind] if options.against is None else options.against:
        path = Path(name) if name.endswith(".parquet") else options.out / name / "test.parquet"
        if own_test and name == options.name:
            continue
        if path.is_file():
            yield from (EvaluationProblem(name, id_, problem) for id_, problem in prepared_file.problems(path))
        elif name in SOURCES and TEST in SOURCES[name].splits:
            try:
                yield from _hub_problems(name)
            except ValueError:
                missing.append(name)
        else:
            known = ", ".join(name for name, other in SOURCES.items() if TEST in other.splits)
            raise ValueError(f"--against {name}: neither a prepared file (*.parquet) nor one of {known}")
    if missing:
        raise ValueError(
            f"training rows are compared with evaluation sets, and {', '.join(missing)} are neither prepared in "
            f"{options.out} nor to be had from the hub: prepare them first (with --from DIR for a copy), name others "
            "with --against, or leave the comparison out with --against none"
        )


def _hub_problems(name: str) -> Iterator[EvaluationProblem]:
    source = SOURCES[name]
    for index, row in enumerate(reading.hub_rows(name, source, TEST)):
        try:
            item = source.row(row)
        except FlaggedRow as flagged:
            item = flagged.item
        except UnusableRow:
            continue
        yield EvaluationProblem(name, item.id or str(index), item.problem)


def _prepare_train(items: Iterable[Item], job: _Job, part: SplitCard) -> None:
    options = job.options
    kept = dedup.deduplicate(items, part.dropped, kind=job.source.kind)
    index = EvaluationIndex(job.compared, ngram=options.ngram, min_overlap=options.min_overlap)
    clean = []
    for item in kept:
        match = index.match(item.problem)
        if match is None:
            clean.append(item)
        else:
            part.dropped[f"repeats a problem of {match.set}"] += 1
            part.matches.append((item.index, match))
    random.Random(f"{options.seed}/{options.name}").shuffle(clean)
    if options.max_rows is not None and len(clean) > options.max_rows:
        part.dropped[f"beyond the first {options.max_rows} after shuffling"] = len(clean) - options.max_rows
        clean = clean[: options.max_rows]
    num_val = min(DEFAULT_VAL_SIZE, len(clean) // 10) if options.val_size is None else options.val_size
    if num_val >= len(clean):
        raise ValueError(
            f"{options.name}: {len(clean)} rows are left, and --val-size takes {num_val}: nothing to train on; "
            f"left out: {dict(+part.dropped)}"
        )
    _write({"val": clean[:num_val], TRAIN: clean[num_val:]}, job, part)


def _write(files: dict[str, Iterable[Item]], job: _Job, part: SplitCard) -> None:
    """Write the files of one split of the source.

    Raises:
        ValueError: every row was too long.
    """
    options = job.options
    counter = lengths.PromptLengths(job.tokenizer, options.max_prompt_length, options.template_kwargs)
    for split, items in files.items():
        rows = counter.filter((_row(item, split, job) for item in items), part.dropped)
        path = options.out / options.name / f"{split}.parquet"
        num_rows = prepared_file.write(path, _counting_references(rows, part))
        if num_rows:
            part.written[path.name] = num_rows
        else:
            # A file of an earlier preparation would be taken for one of this.
            path.unlink(missing_ok=True)
    part.prompt_tokens = counter.summary()
    if not part.written:
        raise ValueError(f"{options.name}: no row is left; left out: {dict(+part.dropped)}")


def _counting_references(rows: Iterable[dict[str, Any]], part: SplitCard) -> Iterator[dict[str, Any]]:
    for row in rows:
        part.with_reference += row["reference_solution"] is not None
        yield row


def _row(item: Item, split: str, job: _Job) -> dict[str, Any]:
    """A row of the file."""
    instruction = job.options.instruction
    if instruction is None:
        instruction = INSTRUCTIONS[job.source.kind] if item.instruction is None else item.instruction
    content = f"{item.problem}\n\n{instruction}" if instruction else item.problem
    system = [{"role": "system", "content": job.options.system}] if job.options.system else []
    return {
        "prompt": [*system, {"role": "user", "content": content}],
        "data_source": job.source.data_source,
        "ability": job.source.kind,
        "reward_model": {"style": "rule", "ground_truth": item.ground_truth},
        "reference_solution": item.reference_solution,
        "extra_info": {"split": split, "index": item.index, "id": item.id, "problem": item.problem},
    }
