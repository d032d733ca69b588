"""Prepared files: their columns are verl's and `reference_solution`, the same for every set, so files can be mixed.

prompt               list of {role, content}; the last one is the problem with its instruction
data_source          name of the set; verl groups metrics by it, and chooses a grader where none is configured
ability              `math` or `code`
reward_model         {style: "rule", ground_truth}: the answer, or the tests as JSON (`programs.py`)
reference_solution   a worked solution, for teachers that see one; null where the set has none
extra_info           {split, index, id, problem}: split of the file, row in the source's split, the source's name for
                     the problem, and the problem without its instruction
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from verl_ext.runtime import files

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
# A whole row group is in memory when it is written or read; the tests of one problem can be megabytes.
_GROUP_ROWS, _GROUP_BYTES = 1024, 64 * 2**20


def check_row(row: Mapping[str, Any]) -> None:
    """Refuse a row that verl, the reward or the teacher's contexts could not use.

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
    """Check rows and write them to a parquet file, which is replaced whole.

    Returns:
        Number of rows; with none, nothing is written.

    Raises:
        ValueError: a row does not fit the schema.
    """
    num_rows = 0
    with files.replacing(path) as partial:
        with parquet.ParquetWriter(partial, COLUMNS, compression="zstd") as writer:
            for group in _groups(rows):
                writer.write_table(pa.Table.from_pylist(group, schema=COLUMNS))
                num_rows += len(group)
        if num_rows:
            check_file(partial, num_rows)
        else:
            partial.unlink()
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
    """Compare a file on disk with what was written.

    Raises:
        ValueError: another schema or another number of rows.
    """
    with parquet.ParquetFile(path) as file:
        if not file.schema_arrow.equals(COLUMNS) or file.metadata.num_rows != num_rows:
            raise ValueError(f"{path} has {file.metadata.num_rows} rows instead of {num_rows}, or another schema")


def problems(path: Path) -> Iterator[tuple[str, str]]:
    """Id of every problem in a prepared file, and the problem without its instruction.

    Raises:
        ValueError: the file was not prepared by this command.
    """
    try:
        is_prepared = parquet.read_schema(path).equals(COLUMNS)
    except pa.ArrowInvalid:
        is_prepared = False
    if not is_prepared:
        raise ValueError(f"{path} was not written by `python -m recipe.trd.data prepare`")
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256, columns=["extra_info"]):
            for row in batch.to_pylist():
                info = row["extra_info"]
                yield info["id"] or str(info["index"]), info["problem"]
