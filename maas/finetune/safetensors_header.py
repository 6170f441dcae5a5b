"""Reads the head of a safetensors file without trusting a byte of it.

Format: eight bytes, little-endian, with the length of a JSON object; that object; the data. The
object names tensors with ``dtype``, ``shape`` and ``data_offsets`` into the data. Written out
here because a file that lies about any of it must be refused before a library reads it.
"""

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from maas.core.errors import AdapterRefused

MAX_HEADER_BYTES = 8 * 2**20
_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"
_SIZES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}
_CHUNK_BYTES = 2**20
# Highest byte of a number whose exponent is all ones, with its sign taken away, and the bits that
# the byte below must have as well: infinity or no number.
_NOT_FINITE = {"F32": (4, 0x7F, 0x80), "BF16": (2, 0x7F, 0x80), "F16": (2, 0x7C, 0x00)}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file; ``start`` and ``end`` are bytes from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a file by name.

    Raises:
        AdapterRefused: The file is not what the format says; the message says where.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, data_start = _object_of(file, size, path.name)
    entries = [
        _entry(name, given, data_start=data_start, where=path.name)
        for name, given in header.items()
        if name != _METADATA
    ]
    _check_metadata(header.get(_METADATA), path.name)
    _check_layout(entries, data_start, size, path.name)
    return {entry.name: entry for entry in entries}


def _object_of(file: BinaryIO, size: int, where: str) -> tuple[dict[str, Any], int]:
    if size < _LENGTH.size + 2:
        raise AdapterRefused(f"{where}: {size} bytes is no safetensors file")
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    if length > min(size - _LENGTH.size, MAX_HEADER_BYTES):
        raise AdapterRefused(
            f"{where}: says that its header has {length} bytes; want at most "
            f"{min(size - _LENGTH.size, MAX_HEADER_BYTES)}"
        )
    return parse_object(file.read(length), where=f"{where}: header"), _LENGTH.size + length


def parse_object(raw: bytes, *, where: str) -> dict[str, Any]:
    """Return a JSON object in which no name stands twice, and no number is not one.

    Raises:
        AdapterRefused: It is none.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise AdapterRefused(f"{where}: {twice[:200]!r} stands twice")
        return found

    def refuse(word: str) -> Any:
        raise AdapterRefused(f"{where}: {word} is no number of JSON")

    try:
        found = json.loads(raw.decode(), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise AdapterRefused(f"{where}: not JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise AdapterRefused(f"{where}: want a JSON object")
    return cast("dict[str, Any]", found)


def _entry(name: str, given: Any, *, data_start: int, where: str) -> TensorEntry:
    about = f"{where}: tensor {name[:200]!r}"
    if not isinstance(given, dict) or set(cast("dict[str, Any]", given)) != {
        *("dtype", "shape", "data_offsets")
    }:
        raise AdapterRefused(f"{about}: want dtype, shape and data_offsets, and nothing else")
    parts = cast("dict[str, Any]", given)
    dtype = parts["dtype"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise AdapterRefused(f"{about}: dtype {str(dtype)[:50]!r} is none of {', '.join(_SIZES)}")
    shape = _counts(parts["shape"], f"{about}: shape")
    offsets = _counts(parts["data_offsets"], f"{about}: data_offsets")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise AdapterRefused(f"{about}: data_offsets must be a beginning and an end")
    if offsets[1] - offsets[0] != math.prod(shape) * _SIZES[dtype]:
        raise AdapterRefused(
            f"{about}: {offsets[1] - offsets[0]} bytes for {list(shape)} of {dtype}"
        )
    return TensorEntry(name, dtype, shape, data_start + offsets[0], data_start + offsets[1])


def _counts(given: Any, about: str) -> tuple[int, ...]:
    items = cast("list[int]", given) if isinstance(given, list) else [-1]
    # A bool is an int to Python; a huge one would make the product slow to compute.
    if len(items) > 8 or any(type(item) is not int or not 0 <= item < 2**48 for item in items):
        raise AdapterRefused(f"{about}: want a few whole numbers")
    return tuple(items)


def _check_metadata(given: Any, where: str) -> None:
    if given is None:
        return
    pairs = cast("dict[str, Any]", given).items() if isinstance(given, dict) else [("", None)]
    if not all(isinstance(value, str) for _, value in pairs):
        raise AdapterRefused(f"{where}: {_METADATA} must be an object of texts")


def _check_layout(entries: list[TensorEntry], data_start: int, size: int, where: str) -> None:
    """Check that tensors lie one after the other, and fill the file."""
    position = data_start
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != position:
            fault = "overlaps another" if entry.start < position else "leaves a gap before it"
            raise AdapterRefused(f"{where}: tensor {entry.name[:200]!r} {fault}")
        position = entry.end
    if position != size:
        raise AdapterRefused(f"{where}: its tensors end at byte {position} and it has {size}")


def chunks_of(file: BinaryIO, entry: TensorEntry) -> Iterator[bytes]:
    """Yield the bytes of a tensor, a mebibyte at a time.

    Raises:
        AdapterRefused: The file became shorter meanwhile.
    """
    file.seek(entry.start)
    left = entry.end - entry.start
    while left:
        chunk = file.read(min(left, _CHUNK_BYTES))
        if not chunk:
            raise AdapterRefused(f"tensor {entry.name[:200]!r}: the file is too short")
        left -= len(chunk)
        yield chunk


def is_finite(chunk: bytes, dtype: str) -> bool:
    """Say whether no number among these is infinite or not a number.

    Args:
        chunk: Whole numbers of them, little-endian.
        dtype: ``F32``, ``F16`` or ``BF16``.
    """
    width, exponent, below = _NOT_FINITE[dtype]
    highest = chunk[width - 1 :: width]
    suspects = highest.translate(_marks(exponent))
    position = suspects.find(1)
    if position < 0 or not below:
        return position < 0
    lower = chunk[width - 2 :: width]
    while position >= 0:
        if lower[position] & below:
            return False
        position = suspects.find(1, position + 1)
    return True


def _marks(exponent: int) -> bytes:
    """Return a table that turns bytes with all these bits into 1 and others into 0."""
    return bytes(byte & exponent == exponent for byte in range(256))
