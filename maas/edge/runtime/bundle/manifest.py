"""``bundle.json``: what is in a bundle, and what its id is made of."""

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import Any, Literal

import msgspec

from maas.core.errors import BundleRefused
from maas.core.names import is_steering

SCHEMA_VERSION = 1
MANIFEST, SIGNATURE = "bundle.json", "bundle.sig"
# What onnxruntime reads, in a folder of its own for each adapter.
ADAPTERS, ADAPTER_FILE = "adapters", "adapter.onnx_adapter"
ADAPTER_NAME = "^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
MAX_ADAPTERS = 32
_MAX_ADAPTER_NAME = 64
MAX_MANIFEST_BYTES = 1 << 20
MAX_PARTS = 512
MAX_PART_BYTES = 1 << 40
MAX_RAM_BYTES = 1 << 50
MAX_MODEL_LEN = 1 << 30
GRAPH_SUFFIX = ".onnx"
TOKENIZER = "tokenizer.json"
# What says how a bundle of a task is run.
CONFIGS = {"generate": "genai_config.json", "embed": "embed_config.json"}
# In bytes: what a tar's header holds, and every file system.
_MAX_PATH_BYTES = 200
_MAX_PIECE_BYTES = 100
_MAX_DEPTH = 8
_Role = Literal["model", "weights", "tokenizer", "template", "config", "adapter", "receipt", "card"]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a bundle."""

    path: str
    size_bytes: int
    sha256: str
    role: _Role


class Adapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter that is loaded at run time, by the folder its files are in."""

    name: str
    folder: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that is known of a bundle without opening its parts.

    ``bundle_id`` is the SHA-256 of all other fields as canonical JSON; the parts are in it by
    their hashes, so the same id is the same bytes.
    """

    schema_version: int
    bundle_id: str
    name: str
    model_id: str
    base_model_id: str
    created_at: float
    precision: str
    target: str
    task: Literal["generate", "embed"]
    licence: dict[str, Any]
    lineage: dict[str, Any]
    parts: tuple[Part, ...]
    adapters: tuple[Adapter, ...] = ()
    ram_required_bytes: int
    max_model_len: int
    tool_call_parser: str | None = None
    cost_card: dict[str, Any]
    receipt: dict[str, Any]
    marks: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of all parts together."""
        return sum(part.size_bytes for part in self.parts)


class _Version(msgspec.Struct):
    schema_version: int


def canonical(value: Any) -> bytes:
    """Return a value as canonical JSON: sorted, without spaces, UTF-8."""
    return json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()


def device_name(text: str) -> str:
    """Return the name of an adapter that is nearest to some text."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)
    return plain[-_MAX_ADAPTER_NAME:].lstrip("-._") or "adapter"


def with_id(manifest: Manifest) -> Manifest:
    """Return a manifest with the id that its content has."""
    return msgspec.structs.replace(manifest, bundle_id=id_of(manifest))


def id_of(manifest: Manifest) -> str:
    """Return the id that a manifest's content has."""
    fields = msgspec.to_builtins(manifest)
    del fields["bundle_id"]
    return hashlib.sha256(canonical(fields)).hexdigest()


def encode(manifest: Manifest) -> bytes:
    """Return the bytes of ``bundle.json``: what is signed."""
    return canonical(msgspec.to_builtins(manifest))


def decode(data: bytes) -> Manifest:
    """Read and check ``bundle.json``.

    Raises:
        BundleRefused: It is of a newer schema, wrong, or names parts that no bundle has.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleRefused(f"{MANIFEST} has more than {MAX_MANIFEST_BYTES} bytes")
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version > SCHEMA_VERSION:
            raise BundleRefused(
                f"the bundle has schema {version} and this program knows {SCHEMA_VERSION}: "
                "update maas-edge"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleRefused(f"{MANIFEST} is wrong: {error}") from error
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    if manifest.schema_version < 1:
        raise BundleRefused(f"{MANIFEST}: no schema {manifest.schema_version}")
    if manifest.bundle_id != id_of(manifest):
        raise BundleRefused(f"{MANIFEST}: its content does not have the id it says")
    if not 0 < len(manifest.parts) <= MAX_PARTS:
        raise BundleRefused(f"{MANIFEST}: want 1 to {MAX_PARTS} parts, not {len(manifest.parts)}")
    _check_facts(manifest)
    _check_parts(manifest.parts)
    _check_adapters(manifest)
    _check_complete(manifest)


def _check_facts(manifest: Manifest) -> None:
    """Check what is shown to people, and what is reckoned with."""
    shown = {
        field: getattr(manifest, field)
        for field in ("name", "model_id", "base_model_id", "precision", "target")
    }
    shown["tool_call_parser"] = manifest.tool_call_parser or ""
    shown |= {f"mark {place}": mark for place, mark in enumerate(manifest.marks)}
    for field, text in shown.items():
        if is_steering(text):
            raise BundleRefused(f"{MANIFEST}: {field} {text[:40]!r} holds control characters")
    for field in ("name", "model_id"):
        if not shown[field].strip():
            raise BundleRefused(f"{MANIFEST}: {field} is empty")
    if not 0 < manifest.ram_required_bytes <= MAX_RAM_BYTES:
        raise BundleRefused(f"{MANIFEST}: no bundle needs {manifest.ram_required_bytes} bytes")
    if not 0 < manifest.max_model_len <= MAX_MODEL_LEN:
        raise BundleRefused(f"{MANIFEST}: no model reads {manifest.max_model_len} tokens")


def _check_parts(parts: tuple[Part, ...]) -> None:
    seen: set[str] = set()
    sizes: dict[str, int] = {}
    for part in parts:
        check_path(part.path)
        # Some devices' file systems do not tell capitals from small letters.
        if part.path.casefold() in seen:
            raise BundleRefused(f"{MANIFEST}: two parts would be the file {part.path!r}")
        seen.add(part.path.casefold())
        if not 0 <= part.size_bytes <= MAX_PART_BYTES:
            raise BundleRefused(f"{part.path}: no part has {part.size_bytes} bytes")
        if len(part.sha256) != 64 or not set(part.sha256) <= set("0123456789abcdef"):
            raise BundleRefused(f"{part.path}: its sha256 is none")
        if sizes.setdefault(part.sha256, part.size_bytes) != part.size_bytes:
            raise BundleRefused(f"{part.path}: has another part's sha256 and not its size")
    for part in parts:
        above = {str(folder) for folder in PurePosixPath(part.path.casefold()).parents}
        if above & seen:
            raise BundleRefused(f"{part.path}: the folder it is in is a part itself")


def _check_complete(manifest: Manifest) -> None:
    """Check that a bundle has what none runs without."""
    paths = {part.path for part in manifest.parts}
    missing = [name for name in (TOKENIZER, CONFIGS[manifest.task]) if name not in paths]
    if not any(path.endswith(GRAPH_SUFFIX) for path in paths):
        missing.append(f"a graph (*{GRAPH_SUFFIX})")
    if missing:
        raise BundleRefused(f"{MANIFEST}: a bundle to {manifest.task} has no {', '.join(missing)}")


def _check_adapters(manifest: Manifest) -> None:
    """Check that adapters are exactly the parts that say they are, each in its own folder."""
    named = [adapter.name.casefold() for adapter in manifest.adapters]
    if len(named) > MAX_ADAPTERS or len({*named, manifest.model_id.casefold()}) <= len(named):
        raise BundleRefused(
            f"{MANIFEST}: want at most {MAX_ADAPTERS} adapters, each with a name of its own"
        )
    for adapter in manifest.adapters:
        if not re.fullmatch(ADAPTER_NAME, adapter.name, re.ASCII):
            raise BundleRefused(f"{MANIFEST}: {adapter.name[:80]!r} is no name of an adapter")
        if adapter.folder != f"{ADAPTERS}/{adapter.name}":
            raise BundleRefused(f"{MANIFEST}: adapter {adapter.name} is in another folder")
    wanted = {f"{adapter.folder}/{ADAPTER_FILE}" for adapter in manifest.adapters}
    found = {
        part.path
        for part in manifest.parts
        if part.role == "adapter" or part.path.casefold().startswith(f"{ADAPTERS}/")
    }
    roles = {part.role for part in manifest.parts if part.path in wanted}
    if found != wanted or (wanted and roles != {"adapter"}):
        raise BundleRefused(f"{MANIFEST}: its parts are not the adapters that it names")


def check_path(path: str) -> None:
    """Check that a part's path stays inside a bundle, on every system.

    Raises:
        BundleRefused: It is absolute, climbs, is hidden, too long, or has characters that mean
            something.
    """
    pieces = path.split("/")
    is_odd = (
        not path
        or len(path.encode(errors="replace")) > _MAX_PATH_BYTES
        or len(pieces) > _MAX_DEPTH
        or PurePosixPath(path).is_absolute()
        or any(not piece or piece.startswith(".") or piece.endswith((".", " ")) for piece in pieces)
        or any(len(piece.encode(errors="replace")) > _MAX_PIECE_BYTES for piece in pieces)
        or is_steering(path)
        or any(ord(char) < 33 or char in '\\:*?"<>|\x7f' for char in path)
        or path.casefold() in {MANIFEST, SIGNATURE}
    )
    if is_odd:
        raise BundleRefused(f"{path[:80]!r} is no path of a part: want a plain relative one")
