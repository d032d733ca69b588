"""Hashes of the tensors in safetensors files: the fingerprint that tells the weights of one model from another's."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class HashedTensor:
    """One tensor of a model and the hash over its name, type, shape and content."""

    file: Path
    dtype: str
    """As safetensors names it, e.g. `BF16`."""
    shape: tuple[int, ...]
    digest: str


def hash_tensors(folder: Path, *, first_rows_only: bool = False) -> dict[str, HashedTensor]:
    """Hash all tensors of a model.

    Args:
        folder: every `*.safetensors` in it is read; with none, there are no tensors.
        first_rows_only: hash entry 0 of the first dimension instead of all values. This reads a few megabytes of a
            model of any size, and training changes it all the same; a change of single other values goes unnoticed.

    Returns:
        Tensor name to its hash.

    Raises:
        ValueError: a file is damaged, or two files hold the same tensor.
    """
    files = sorted(folder.glob("*.safetensors"))
    found: dict[str, HashedTensor] = {}
    with ThreadPoolExecutor(4) as threads:
        for hashed in threads.map(partial(_hash_file, first_rows_only=first_rows_only), files):
            for name, tensor in hashed:
                if name in found:
                    raise ValueError(
                        f"tensor {name} is in {found[name].file.name} and in {tensor.file.name} of {folder}"
                    )
                found[name] = tensor
    return found


def is_whole(path: Path) -> bool:
    """Whether a safetensors file has a header, and all bytes of the tensors that it names."""
    try:
        with path.open("rb") as file:
            _header(file, path)
    except ValueError:
        return False
    return True


def _hash_file(path: Path, *, first_rows_only: bool) -> list[tuple[str, HashedTensor]]:
    """Reads the format itself: the library gives bfloat16 to torch only, and hashing needs only bytes."""
    hashed = []
    with path.open("rb") as file:
        for name, entry in _header(file, path).items():
            digest = hashlib.sha256(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
            for chunk in _chunks(file, entry, first_row_only=first_rows_only):
                digest.update(chunk)
            hashed.append((name, HashedTensor(path, entry["dtype"], tuple(entry["shape"]), digest.hexdigest())))
    return hashed


def _header(file: BinaryIO, path: Path) -> dict[str, Any]:
    """Type, shape and place in the file of every tensor."""
    size = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(size))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no safetensors file, or a damaged one") from error
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in entries.items():
        entry["data_offsets"] = [8 + size + offset for offset in entry["data_offsets"]]
        if entry["data_offsets"][1] > path.stat().st_size:
            raise ValueError(f"{path} ends before its tensor {name} does: copy it again")
    return entries


def _chunks(file: BinaryIO, entry: Mapping[str, Any], *, first_row_only: bool) -> Iterator[bytes]:
    begin, end = entry["data_offsets"]
    left = end - begin
    if first_row_only and entry["shape"] and entry["shape"][0]:
        left //= entry["shape"][0]
    file.seek(begin)
    while left:
        chunk = file.read(min(left, _CHUNK_BYTES))
        if not chunk:
            raise ValueError(f"{file.name} became shorter while it was read: copy it again")
        yield chunk
        left -= len(chunk)


def fingerprint(tensors: Mapping[str, HashedTensor]) -> str:
    """Hash over all tensors, in hexadecimal; the same however they are spread over files."""
    return hashlib.sha256("\n".join(tensors[name].digest for name in sorted(tensors)).encode()).hexdigest()
