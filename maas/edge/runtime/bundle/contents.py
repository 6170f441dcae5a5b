"""Checks what only the parts tell: that nothing in a bundle opens a file outside of it.

A graph may have its weights in other files, and ``genai_config.json`` says which graph is opened
and how; onnxruntime would take any file of the device for either, and any library.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from maas.core.errors import BundleRefused
from maas.edge.runtime.bundle.graph import MAX_GRAPH_BYTES, check_external_data
from maas.edge.runtime.bundle.manifest import CONFIGS, GRAPH_SUFFIX, Manifest, Part

_CONFIG = CONFIGS["generate"]
_MAX_CONFIG_BYTES = 1 << 20
_FILE_NAME = "filename"
# Of onnxruntime: what is below may name files.
_OPTIONS = frozenset({"session_options", "provider_options", "run_options"})
_LEAVES = re.compile(r"^[/\\~]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")
Read = Callable[[Part], bytes]


def check_folder(folder: Path, manifest: Manifest) -> None:
    """Check an unpacked bundle, whose parts are as the manifest says.

    Raises:
        BundleRefused: Something in it names a file outside.
    """
    check_contents(manifest, lambda part: (folder / part.path).read_bytes())


def check_contents(manifest: Manifest, read: Read) -> None:
    """Check a bundle's graphs and its configuration.

    Args:
        manifest: What is in it.
        read: Returns the bytes of a part.

    Raises:
        BundleRefused: Something in it names a file outside, or is not what its name says.
    """
    paths = {part.path for part in manifest.parts}
    for part in manifest.parts:
        if part.path == _CONFIG:
            if part.size_bytes > _MAX_CONFIG_BYTES:
                raise BundleRefused(f"{part.path}: more than {_MAX_CONFIG_BYTES} bytes")
            _check_config(read(part), paths)
        elif part.path.endswith(GRAPH_SUFFIX):
            if part.size_bytes > MAX_GRAPH_BYTES:
                raise BundleRefused(f"{part.path}: too large for a graph")
            check_external_data(memoryview(read(part)), part.path, paths)


def _check_config(data: bytes, paths: Collection[str]) -> None:
    try:
        config = json.loads(data.decode(), object_pairs_hook=_once)
        found = list(_entries(config, is_option=False))
    except (ValueError, RecursionError) as error:
        raise BundleRefused(f"{_CONFIG}: cannot be read: {error}") from error
    for key, value, is_option in found:
        if "library" in key:
            raise BundleRefused(f"{_CONFIG}: {key}: a bundle brings no library of its own")
        if key.endswith(_FILE_NAME):
            _check_file(key, value, paths)
        elif is_option and isinstance(value, str) and _LEAVES.search(value):
            raise BundleRefused(f"{_CONFIG}: {key} is {value[:80]!r}, outside the bundle")


def _check_file(key: str, value: Any, paths: Collection[str]) -> None:
    is_part = isinstance(value, str) and "/" not in value and value in paths
    if not is_part or (key == _FILE_NAME and not value.endswith(GRAPH_SUFFIX)):
        raise BundleRefused(
            f"{_CONFIG}: {key} is {str(value)[:80]!r}: want the name of a graph of the bundle"
        )


def _entries(value: Any, *, is_option: bool) -> Iterator[tuple[str, Any, bool]]:
    """Yield every entry, its key in small letters, and whether it is an option of onnxruntime."""
    if isinstance(value, list):
        for item in value:
            # Options may be pairs in lists.
            yield from [("", item, is_option)] if isinstance(item, str) else ()
            yield from _entries(item, is_option=is_option)
    elif isinstance(value, dict):
        for key, item in value.items():
            inside = is_option or key in _OPTIONS
            yield key.casefold(), item, inside
            yield from _entries(item, is_option=inside)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; of two entries of one name, another reader may take the other."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name is there twice")
    return made
