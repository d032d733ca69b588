"""The columns of a prepared file: verl's format, and `reference_solution`. Every set has the same: files can be mixed.

prompt               list of {role, content}; the last one is the problem with its instruction
data_source          name of the set; by it verl groups metrics, and chooses a grader where no other is configured
ability              `math` or `code`
reward_model         {style: "rule", ground_truth}: the answer, or the tests as JSON (`programs.py`)
reference_solution   a worked solution, for teachers that see one; null where the set has none
extra_info           {split, index, id, problem}: our split, row in the source's split, its own name, the bare problem
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

COLUMNS = pa.schema(
    [
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("data_source", pa.string()),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        ("reference_solution", pa.string()),
        (
            "extra_info",
            pa.struct([("split", pa.string()), ("index", pa.int64()), ("id", pa.string()), ("problem", pa.string())]),
        ),
    ]
)
ROLES = ("system", "user", "assistant")
# A row group is in memory as a whole when it is written or read; tests of programs can be megabytes a row.
_GROUP_ROWS, _GROUP_BYTES = 1024, 64 * 2**20


def check_row(row: Mapping[str, Any]) -> None:
    """Refuse a row that verl, the reward or the contexts could not use.

    Raises:
        ValueError: a column is missing, unknown, of another type or empty; the message names it.
    """
    if set(row) != set(COLUMNS.names):
        raise ValueError(f"columns {sorted(row)} instead of {sorted(COLUMNS.names)}")
    prompt = row["prompt"]
    if not prompt or any(set(message) != {"role", "content"} for message in prompt):
        raise ValueError("prompt is no list of messages with role and content")
    if prompt[-1]["role"] != "user" or any(message["role"] not in ROLES for message in prompt):
        raise ValueError(f"prompt has roles other than {ROLES}, or does not end with the user's")
    texts = {f"prompt[{position}].content": message["content"] for position, message in enumerate(prompt)}
    texts |= {key: row[key] for key in ("data_source", "ability")}
    texts |= {f"reward_model.{key}": row["reward_model"].get(key) for key in ("style", "ground_truth")}
    texts |= {f"extra_info.{key}": row["extra_info"].get(key) for key in ("split", "problem")}
    if row["reference_solution"] is not None:
        texts["reference_solution"] = row["reference_solution"]
    for name, value in texts.items():
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name} is {value!r}, not a text")
    if not isinstance(row["extra_info"].get("index"), int):
        raise ValueError("extra_info.index is no number")


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write checked rows to a parquet file, which is there as a whole or not at all.

    Returns:
        Number of rows; with none there is no file.

    Raises:
        ValueError: a row does not fit the schema.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    num_rows = 0
    try:
        with parquet.ParquetWriter(unfinished, COLUMNS, compression="zstd") as writer:
            for group in _groups(rows):
                writer.write_table(pa.Table.from_pylist(group, schema=COLUMNS))
                num_rows += len(group)
        if num_rows:
            check_file(unfinished, num_rows)
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return num_rows


def _groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    group: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        check_row(row)
        group.append(row)
        size += len(row["reward_model"]["ground_truth"])
        if len(group) == _GROUP_ROWS or size > _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def check_file(path: Path, num_rows: int) -> None:
    """Compare what lies on disk with what was meant to be written.

    Raises:
        ValueError: another schema or another number of rows.
    """
    with parquet.ParquetFile(path) as file:
        if not file.schema_arrow.equals(COLUMNS) or file.metadata.num_rows != num_rows:
            raise ValueError(f"{path} has {file.metadata.num_rows} rows instead of {num_rows}, or another schema")


def problems(path: Path) -> Iterator[tuple[str, str]]:
    """Id and bare problem of every row of a prepared file.

    Raises:
        ValueError: the file was not prepared by this command.
    """
    try:
        is_ours = parquet.read_schema(path).equals(COLUMNS)
    except pa.ArrowInvalid:
        is_ours = False
    if not is_ours:
        raise ValueError(f"{path} was not written by `python -m recipe.trd.data prepare`")
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256, columns=["extra_info"]):
            for row in batch.to_pylist():
                info = row["extra_info"]
                yield info["id"] or str(info["index"]), info["problem"]
