"""The file: an uncompressed tar, ``bundle.json`` and ``bundle.sig`` first, then the parts.

Members lie one after the other at steps of 512 bytes, so where each part begins follows from the
manifest: a server that knows nothing but ranges is enough to fetch some parts and not others. The
same folder makes the same bytes. What is read must be exactly what ``pack`` would have written:
plain files, in the manifest's order, with sizes and hashes as it says.
"""

import hashlib
import os
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from maas.core.errors import BundleRefused, ConfigError
from maas.core.host import check_disk
from maas.edge.runtime.bundle.contents import check_contents, check_folder
from maas.edge.runtime.bundle.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SIGNATURE,
    Manifest,
    Part,
    decode,
    encode,
    with_id,
)
from maas.edge.runtime.bundle.signing import MAX_SIGNATURE_BYTES, check_signature, sign

_BLOCK = 512
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Head:
    """The first two members, checked.

    Attributes:
        public_key: Who signed it.
        size_bytes: Where the first part's header begins in the file.
    """

    manifest: Manifest
    data: bytes
    signature: bytes
    public_key: str
    size_bytes: int

    def offsets(self) -> dict[str, int]:
        """Return where each part's bytes begin in the file, by path."""
        found: dict[str, int] = {}
        place = self.size_bytes
        for part in self.manifest.parts:
            found[part.path] = place + _BLOCK
            place += _BLOCK + _padded(part.size_bytes)
        return found


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pack(folder: Path, manifest: Manifest, key: Ed25519PrivateKey, out: Path) -> Manifest:
    """Write a bundle; it appears under its name when it is whole.

    Args:
        folder: Holds the parts.
        manifest: What is in it; its id is worked out here.
        key: Signs it.
        out: The file.

    Returns:
        The manifest as written.
    """
    manifest = with_id(manifest)
    data = encode(manifest)
    decode(data)
    need = len(data) + manifest.size_bytes + _BLOCK * (2 * len(manifest.parts) + 20)
    out.parent.mkdir(parents=True, exist_ok=True)
    check_disk(out.parent, need_bytes=need)
    new = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as stream:
            _write_member(stream, MANIFEST, data)
            _write_member(stream, SIGNATURE, sign(data, key))
            for part in manifest.parts:
                _write_file(stream, folder, part)
            stream.write(bytes(2 * _BLOCK))
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(out)
    finally:
        new.unlink(missing_ok=True)
    return manifest


class Readable(Protocol):
    """What the head of a bundle is read from."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes; fewer at the end."""
        ...


def read_head(stream: Readable, trusted: Collection[str] | None) -> Head:
    """Read and check manifest and signature.

    Args:
        stream: At the file's begin.
        trusted: Public keys that may have signed it; none takes any.

    Raises:
        BundleRefused: They are not what a bundle begins with, or nobody trusted signed it.
    """
    data = _read_small(stream, MANIFEST, MAX_MANIFEST_BYTES)
    signature = _read_small(stream, SIGNATURE, MAX_SIGNATURE_BYTES)
    public_key = check_signature(data, signature, trusted)
    size = 2 * _BLOCK + _padded(len(data)) + _padded(len(signature))
    return Head(decode(data), data, signature, public_key, size)


def verify(path: Path, trusted: Collection[str] | None) -> Head:
    """Check a whole bundle, without writing anything.

    Raises:
        BundleRefused: It is not a bundle, was changed, cut off, or nobody trusted signed it.
    """
    with path.open("rb") as stream:
        head = read_head(stream, trusted)
        for part in head.manifest.parts:
            for _ in _read_part(stream, part):
                pass
        _read_end(stream)
        offsets = head.offsets()

        def read(part: Part) -> bytes:
            stream.seek(offsets[part.path])
            return stream.read(part.size_bytes)

        check_contents(head.manifest, read)
    return head


def unpack(path: Path, folder: Path, trusted: Collection[str] | None) -> Head:
    """Write a bundle's parts into a new folder; all of them and checked, or no folder at all.

    Raises:
        BundleRefused: It is not a bundle, was changed, cut off, or nobody trusted signed it.
        ConfigError: The folder cannot be made, or something is there already.
        DiskFull: No room for them.
    """
    if folder.is_symlink() or (folder.exists() and not _is_empty(folder)):
        raise ConfigError(f"{folder}: there is something already: name a folder to be made")
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    with path.open("rb") as stream:
        head = read_head(stream, trusted)
        _make_beside(folder, new, need_bytes=head.manifest.size_bytes)
        try:
            for part in head.manifest.parts:
                write_part(new / part.path, _read_part(stream, part))
            _read_end(stream)
            check_folder(new, head.manifest)
            (new / MANIFEST).write_bytes(head.data)
            (new / SIGNATURE).write_bytes(head.signature)
            new.rename(folder)
        finally:
            _remove(new)
    return head


def write_part(path: Path, chunks: Iterator[bytes]) -> None:
    """Write a file that is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        for chunk in chunks:
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())


def check_chunks(part: Part, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass a part's bytes on, no more than it has, and check them at their end.

    Raises:
        BundleRefused: There are too few or too many, or they are others.
    """
    digest, left = hashlib.sha256(), part.size_bytes
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise BundleRefused(f"{part.path}: has more than its {part.size_bytes} bytes")
        digest.update(chunk)
        yield chunk
    if left:
        raise BundleRefused(f"{part.path}: cut off, {left} of {part.size_bytes} bytes are missing")
    if digest.hexdigest() != part.sha256:
        raise BundleRefused(f"{part.path}: its bytes are not those the manifest names")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    try:
        return info.tobuf(tarfile.USTAR_FORMAT)
    except ValueError as error:
        raise BundleRefused(f"{name}: a tar cannot hold it: {error}") from error


def _write_member(stream: IO[bytes], name: str, data: bytes) -> None:
    stream.write(_header(name, len(data)))
    stream.write(data)
    stream.write(bytes(_padded(len(data)) - len(data)))


def _write_file(stream: IO[bytes], folder: Path, part: Part) -> None:
    stream.write(_header(part.path, part.size_bytes))
    with (folder / part.path).open("rb") as source:
        for chunk in check_chunks(part, iter(lambda: source.read(_CHUNK), b"")):
            stream.write(chunk)
    stream.write(bytes(_padded(part.size_bytes) - part.size_bytes))


def _read_header(stream: Readable, name: str, max_bytes: int) -> int:
    block = stream.read(_BLOCK)
    if len(block) < _BLOCK:
        raise BundleRefused(f"cut off before {name}")
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise BundleRefused(f"not a bundle: no {name} where it should begin") from error
    if info.name != name or not info.isreg() or info.linkname:
        raise BundleRefused(f"not a bundle: found {info.name[:80]!r} where {name} should begin")
    if block != _header(name, info.size):
        raise BundleRefused(f"not a bundle: the header of {name} is not one of ours")
    if info.size > max_bytes:
        raise BundleRefused(f"{name}: {info.size} bytes, at most {max_bytes} are read")
    return info.size


def _read_small(stream: Readable, name: str, max_bytes: int) -> bytes:
    size = _read_header(stream, name, max_bytes)
    data = stream.read(_padded(size))
    if len(data) < _padded(size):
        raise BundleRefused(f"cut off in {name}")
    if any(data[size:]):
        raise BundleRefused(f"not a bundle: something is hidden behind {name}")
    return data[:size]


def _read_part(stream: IO[bytes], part: Part) -> Iterator[bytes]:
    size = _read_header(stream, part.path, part.size_bytes)
    yield from check_chunks(part, _chunks(stream, size))
    padding = _padded(size) - size
    if stream.read(padding) != bytes(padding):
        raise BundleRefused(f"cut off after {part.path}")


def _chunks(stream: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0:
        chunk = stream.read(min(_CHUNK, size))
        if not chunk:
            return
        size -= len(chunk)
        yield chunk


def _read_end(stream: IO[bytes]) -> None:
    if stream.read(2 * _BLOCK + 1) != bytes(2 * _BLOCK):
        raise BundleRefused("not a bundle: there is more, or less, behind its last part")


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _make_beside(folder: Path, new: Path, *, need_bytes: int) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        check_disk(folder.parent, need_bytes=need_bytes)
        new.mkdir()
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made: {error.strerror or error}") from error


def _remove(folder: Path) -> None:
    if not folder.exists():
        return
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
