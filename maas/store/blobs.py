"""Blobs: bytes under a key, in a local folder or in S3, there whole or not at all.

What comes in is spooled to this machine's disk first, hashed on the way, and moved into place
when it is complete: a rename in a local folder, one upload to S3. Whoever dies in between leaves
a spool file that nobody sees, or parts of an upload that S3 shows nobody; ``sweep`` removes those.

    storage_url = s3://bucket/prefix, or the folder MAAS_HOME/blobs
      files/<file id>                    uploads/<upload id>/<part id>
      adapters/<sha256>/<name>           weights/<sha256>/<name>
"""

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from maas.core.errors import (
    ConfigError,
    DiskFull,
    HostError,
    MaasError,
    NotFound,
    StorageUnavailable,
)
from maas.core.ids import new_id
from maas.core.settings import Settings

CHUNK_BYTES = 1 << 20
SPOOL_KEPT_S = 86_400.0
_SWEEP_INTERVAL_S = 3600.0
# Of an upload to S3: what it holds in memory is their product.
_S3_PART_BYTES, _S3_PARTS_AT_ONCE = 8 << 20, 4
_S3_MAX_PARTS = 9000
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
T = TypeVar("T")


@dataclass(frozen=True)
class BlobFacts:
    """A blob that was written.

    Attributes:
        sha256: Of its bytes, in hex.
    """

    key: str
    size_bytes: int
    sha256: str


class Incoming:
    """Bytes on their way in.

    Args:
        path: The spool file; it must not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._hash = hashlib.sha256()
        _or_full(lambda: path.parent.mkdir(parents=True, exist_ok=True), path)
        self._stream = _or_full(lambda: path.open("xb"), path)

    @property
    def sha256(self) -> str:
        """Hash of what came so far, in hex."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Add bytes.

        Raises:
            DiskFull: There is no room.
        """
        _or_full(lambda: self._stream.write(data), self.path)
        self._hash.update(data)
        self.size_bytes += len(data)

    def seal(self) -> None:
        """Make sure that all of it is on the disk.

        Raises:
            DiskFull: There is no room.
        """

        def flush() -> None:
            self._stream.flush()
            os.fsync(self._stream.fileno())

        _or_full(flush, self.path)
        self._stream.close()

    def discard(self) -> None:
        """Forget it; doing so twice is fine."""
        with contextlib.suppress(OSError):
            # Closing writes what is buffered, and there may be no room.
            self._stream.close()
        self.path.unlink(missing_ok=True)


class Blobs:
    """Reads and writes blobs. Safe to use from many threads.

    Args:
        url: ``s3://bucket/prefix``, or a folder's path.
        spool_dir: Where bytes wait until they are complete; on the folder's own disk.
        options: For fsspec.
    """

    def __init__(self, url: str, *, spool_dir: Path, options: dict[str, Any] | None = None) -> None:
        try:
            # By name: it has no types.
            found: tuple[Any, str] = import_module("fsspec.core").url_to_fs(url, **(options or {}))
        except (ImportError, ValueError) as error:
            raise ConfigError(f"setting 'storage_url' (MAAS_STORAGE_URL): {error}") from error
        self._fs, root = found
        self._root = root.rstrip("/")
        self._is_local = "://" not in url
        self._spool_dir = spool_dir
        self._swept_at = 0.0

    def begin(self) -> Incoming:
        """Begin to take bytes in.

        Raises:
            DiskFull: There is no room.
        """
        if time.monotonic() - self._swept_at > _SWEEP_INTERVAL_S:
            # Each machine has a spool of its own, which nobody else can sweep.
            self._swept_at = time.monotonic()
            self._sweep_spool()
        return Incoming(self._spool_dir / new_id("spool"))

    def put(self, key: str, incoming: Incoming) -> BlobFacts:
        """Keep what came in under a key, whole or not at all; it replaces what is there.

        Raises:
            DiskFull: There is no room.
            StorageUnavailable: The storage does not answer.
        """
        incoming.seal()
        facts = BlobFacts(key, incoming.size_bytes, incoming.sha256)
        self._place(incoming.path, key)
        return facts

    def put_file(self, key: str, path: Path) -> BlobFacts:
        """Keep a copy of a local file under a key."""
        incoming = self.begin()
        try:
            with path.open("rb") as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    incoming.write(chunk)
            return self.put(key, incoming)
        except BaseException:
            incoming.discard()
            raise

    def put_folder(self, key: str, folder: Path, names: tuple[str, ...]) -> int:
        """Keep copies of a folder's files under ``key/<name>``; return their bytes.

        A reader asks for the names in order: the last one is there when all are.
        """
        return sum(self.put_file(f"{key}/{name}", folder / name).size_bytes for name in names)

    def get_folder(self, key: str, folder: Path, names: tuple[str, ...]) -> None:
        """Make a local folder of ``key/<name>``, there whole or not at all.

        Raises:
            NotFound: A file is not there.
            DiskFull: There is no room.
        """
        if folder.exists():
            return
        remove_old(folder.parent, ".*.new-*")
        new = folder.parent / f".{folder.name}.{new_id('new')}"
        new.mkdir(parents=True)
        try:
            for name in names:
                self.download(f"{key}/{name}", new / name)
            new.rename(folder)
        except OSError:
            # Another process was quicker.
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def download(self, key: str, path: Path) -> None:
        """Make a local file of a blob, there whole or not at all.

        Raises:
            NotFound: There is no such blob.
            DiskFull: There is no room.
        """
        new = path.parent / f".{path.name}.{new_id('new')}"
        try:
            with _or_full(lambda: new.open("xb"), new) as stream:
                for chunk in self.read(key):
                    _or_full(lambda data=chunk: stream.write(data), new)
                stream.flush()
                os.fsync(stream.fileno())
            new.rename(path)
        finally:
            new.unlink(missing_ok=True)

    def read(self, key: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield a blob's bytes.

        Args:
            key: Which.
            start: First byte.
            end: The byte it ends before; none reads to its end.

        Raises:
            NotFound: There is no such blob.
            StorageUnavailable: The storage does not answer.
        """
        stream = self._asked(lambda: self._fs.open(self._path(key), "rb"), key)
        try:
            self._asked(lambda: stream.seek(start), key)
            left = None if end is None else end - start
            while left is None or left > 0:
                size = CHUNK_BYTES if left is None else min(CHUNK_BYTES, left)
                chunk: bytes = self._asked(lambda size=size: stream.read(size), key)
                if not chunk:
                    return
                left = None if left is None else left - len(chunk)
                yield chunk
        finally:
            stream.close()

    def exists(self, key: str) -> bool:
        """Say whether there is such a blob."""
        return bool(self._asked(lambda: self._fs.exists(self._path(key))))

    def delete(self, key: str) -> None:
        """Remove a blob, or a folder of them; doing so twice is fine."""
        with contextlib.suppress(NotFound):
            self._asked(lambda: self._fs.rm(self._path(key), recursive=True), key)

    def keys(self, prefix: str) -> list[tuple[str, float]]:
        """Return key and age in seconds of each blob under a prefix."""

        def found() -> list[tuple[str, float]]:
            root = self._path(prefix)
            if not self._fs.exists(root):
                return []
            files: dict[str, dict[str, Any]] = self._fs.find(root, detail=True)
            return [(self._key(path), _age_s(facts)) for path, facts in files.items()]

        return self._asked(found)

    def sweep(self) -> None:
        """Remove what was begun long ago and never completed."""
        self._sweep_spool()
        if self._is_local:
            return
        bucket = self._root.removeprefix("s3://").partition("/")[0]
        for upload in self._asked(lambda: self._fs.list_multipart_uploads(bucket)):
            is_ours = f"{bucket}/{upload['Key']}".startswith(f"{self._root}/")
            if is_ours and time.time() - upload["Initiated"].timestamp() > SPOOL_KEPT_S:
                self._asked(
                    lambda upload=upload: self._fs.call_s3(
                        "abort_multipart_upload",
                        Bucket=bucket,
                        Key=upload["Key"],
                        UploadId=upload["UploadId"],
                    )
                )

    def _sweep_spool(self) -> None:
        remove_old(self._spool_dir, "spool-*")

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _key(self, path: str) -> str:
        return path.removeprefix(f"{self._root}/")

    def _place(self, spooled: Path, key: str) -> None:
        if self._is_local:
            final = Path(self._path(key))
            _or_full(lambda: final.parent.mkdir(parents=True, exist_ok=True), final)
            _or_full(lambda: spooled.replace(final), final)
            _sync_folder(final.parent)
            return
        part_bytes = max(_S3_PART_BYTES, spooled.stat().st_size // _S3_MAX_PARTS)
        try:
            self._asked(
                lambda: self._fs.put_file(
                    str(spooled),
                    self._path(key),
                    chunksize=part_bytes,
                    max_concurrency=_S3_PARTS_AT_ONCE,
                )
            )
        finally:
            spooled.unlink(missing_ok=True)

    @staticmethod
    def _asked(ask: Callable[[], T], key: str = "") -> T:
        try:
            return ask()
        except MaasError:
            raise
        except FileNotFoundError as error:
            raise NotFound(f"no blob has the key {key!r}") from error
        except OSError as error:
            if error.errno in _FULL:
                raise DiskFull(f"no room for blobs: {error}") from error
            raise StorageUnavailable(f"the storage of blobs failed: {error}") from error
        except Exception as error:
            # botocore's errors are no OSError.
            raise StorageUnavailable(f"the storage of blobs failed: {error}") from error


def open_blobs(settings: Settings) -> Blobs:
    """Open the storage that the settings name.

    Raises:
        ConfigError: It is of a kind that this installation cannot reach.
    """
    if settings.storage_url is None:
        folder = settings.home / "blobs"
        folder.mkdir(parents=True, exist_ok=True)
        return Blobs(str(folder), spool_dir=folder / ".incoming")
    options: dict[str, Any] = {}
    if settings.storage_url.startswith("s3://"):
        options = {"skip_instance_cache": True, "use_listings_cache": False}
        if settings.s3_endpoint:
            options["endpoint_url"] = settings.s3_endpoint
    return Blobs(settings.storage_url, spool_dir=settings.home / "spool", options=options)


def remove_old(folder: Path, pattern: str) -> None:
    """Remove files and folders of these names that whoever made them left there a day ago."""
    oldest = time.time() - SPOOL_KEPT_S
    for path in folder.glob(pattern):
        # Another process may do the same, or its owner may be done.
        with contextlib.suppress(FileNotFoundError):
            if path.stat(follow_symlinks=False).st_mtime >= oldest:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _age_s(facts: dict[str, Any]) -> float:
    modified = facts.get("mtime") or facts.get("LastModified")
    if modified is None:
        return 0.0
    return time.time() - (modified if isinstance(modified, float) else modified.timestamp())


def _or_full(act: Callable[[], T], path: Path) -> T:
    try:
        return act()
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"no room on the disk of {path.parent}") from error
        raise HostError(f"the disk of {path.parent} failed: {error}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
