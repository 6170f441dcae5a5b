"""Reads where an ONNX file says its weights are, without the onnx package.

Only protobuf's wire format is walked: ModelProto.graph (7) > GraphProto.initializer (5) and node
(1) > attributes > TensorProto.external_data (13) > key (1), value (2). A model could otherwise
name any file of the device as its weights.

Source: protobuf encoding guide; onnx.proto3.
"""

from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from maas.core.errors import BundleRefused

MAX_GRAPH_BYTES = 1 << 31
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 16
# Field numbers of messages that can hold a tensor, by the kind of the message around them.
_INSIDE = {
    "model": {7: "graph", 25: "function", 20: "training"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "tensor": {13: "entry"},
}


def check_external_data(data: memoryview, name: str, parts: Collection[str]) -> None:
    """Check that a graph's weights are in files of its bundle.

    Args:
        data: The graph.
        name: Its path in the bundle.
        parts: Paths of all parts.

    Raises:
        BundleRefused: One is elsewhere, or the file is no graph.
    """
    folder = PurePosixPath(name).parent
    for location in locations(data, name):
        if str(folder / location) not in parts or ".." in location.split("/"):
            raise BundleRefused(f"{name}: its weights are in {location[:80]!r}, outside the bundle")


def locations(data: memoryview, name: str) -> set[str]:
    """Return the files an ONNX model names.

    Raises:
        BundleRefused: It is none.
    """
    found: set[str] = set()
    try:
        _walk(data, "model", found, 0)
    except (IndexError, UnicodeDecodeError, RecursionError) as error:
        raise BundleRefused(f"{name}: not an ONNX graph") from error
    return found


def _walk(data: memoryview, kind: str, found: set[str], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise IndexError("nested too deep")
    inside = _INSIDE[kind]
    for number, value in _fields(data):
        wanted = inside.get(number)
        if wanted is None or value is None:
            continue
        if wanted == "entry":
            entry = {n: bytes(v).decode() for n, v in _fields(value) if v is not None}
            if entry.get(1) == "location":
                found.add(entry.get(2, ""))
        else:
            _walk(value, wanted, found, depth + 1)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Yield the number of each field, and its bytes where it has a length."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, place = _varint(data, place)
            yield number, None
        elif wire == _BYTES:
            size, place = _varint(data, place)
            if place + size > len(data):
                raise IndexError("cut off")
            yield number, data[place : place + size]
            place += size
        elif wire in {_FIXED64, _FIXED32}:
            place += 8 if wire == _FIXED64 else 4
            yield number, None
        else:
            raise IndexError("an unknown wire type")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise IndexError("a number too long")
