"""The bundles of one device.

    home/
      parts/<sha256>          parts, each once, however many bundles have it
      parts/.<sha256>.new     what is being fetched; kept after a power cut, to go on from
      bundles/<bundle id>/    hard links to its parts, with bundle.json and bundle.sig; one that
                              is named by neither file below was fetched, and is not in use yet
      current, previous       each the id of a bundle; replaced in one step
      trusted_keys/<id>.pub   whose bundles are taken

A bundle's folder appears when it is whole and on the disk, and ``current`` is changed after that:
at every moment it names a bundle that works, or the one before.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from maas.core.errors import AlreadyRunning, BundleRefused, NotFound, SourceUnreachable
from maas.core.host import check_disk
from maas.edge.runtime.bundle.archive import Head, check_chunks, hash_file, read_head
from maas.edge.runtime.bundle.contents import check_folder
from maas.edge.runtime.bundle.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SIGNATURE,
    Manifest,
    Part,
    decode,
)
from maas.edge.runtime.bundle.signing import check_signature, key_id_of
from maas.edge.runtime.disk import sync, write_whole
from maas.edge.runtime.shelf.sources import HeadStream, Source

KEEP_BUNDLES = 2
_KEY_DIGITS = 64
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Held:
    """A bundle on the shelf."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class Pulled:
    """What a pull did.

    Attributes:
        fetched_bytes: What came over the wire, or from the file.
        reused_bytes: Parts that were here already.
        new_key: The signer's key, where it was not known before and is now.
    """

    held: Held
    fetched_bytes: int
    reused_bytes: int
    new_key: str | None


class Shelf:
    """Keeps bundles under one folder.

    Args:
        home: The folder; made when it is needed.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._parts = home / "parts"
        self._bundles = home / "bundles"
        self._keys = home / "trusted_keys"

    def trusted(self) -> set[str]:
        """Return the public keys whose bundles are taken."""
        return {path.read_text().strip() for path in self._keys.glob("*.pub")}

    def trust(self, public_key: str) -> None:
        """Take bundles of a key from now on.

        Raises:
            BundleRefused: It is no key.
        """
        key = public_key.strip().lower()
        if len(key) != _KEY_DIGITS or not set(key) <= set("0123456789abcdef"):
            raise BundleRefused(f"not a public key: want {_KEY_DIGITS} hexadecimal digits")
        self._keys.mkdir(parents=True, exist_ok=True)
        write_whole(self._keys / f"{key_id_of(key)}.pub", key.encode())

    def current(self) -> Held | None:
        """Return the bundle in use."""
        return self._named("current")

    def previous(self) -> Held | None:
        """Return the bundle before."""
        return self._named("previous")

    def held(self) -> list[Held]:
        """Return all bundles whose manifest is whole, the newest made first."""
        opened = [_readable(self._open, path.name) for path in self._bundles.glob("[0-9a-f]*")]
        found = [held for held in opened if held is not None]
        return sorted(found, key=lambda held: held.manifest.created_at, reverse=True)

    def pull(
        self,
        source: Source,
        report: Report = lambda _done, _all: None,
        *,
        on_fetched: Callable[[Pulled], object] = lambda _pulled: None,
    ) -> Pulled:
        """Fetch a bundle, check it, and switch to it; the one before stays until then.

        The first key a device ever sees is the one it trusts from then on; a bundle of another
        one is refused until that is trusted too.

        Args:
            source: Where it is.
            report: Told the bytes fetched so far, and all that must be.
            on_fetched: Called with what is not in use yet; where it raises, that stays so.

        Raises:
            BundleRefused: It is not what its maker signed, or nobody trusted signed it.
            SourceUnreachable: The source stopped; pulling again goes on from there.
            DiskFull: No room for it.
            AlreadyRunning: Another process changes the shelf.
        """
        with self._alone():
            pulled = self._pull(source, report)
            on_fetched(pulled)
            self._trust_new(pulled)
            self._switch(pulled.held.manifest.bundle_id)
            self._sweep()
        return pulled

    def fetch(self, source: Source, report: Report = lambda _done, _all: None) -> Pulled:
        """Fetch a bundle and check it, as ``pull`` does, and go on using the one in use.

        Raises:
            BundleRefused: It is not what its maker signed, or nobody trusted signed it.
            SourceUnreachable: The source stopped; fetching again goes on from there.
            DiskFull: No room for it.
            AlreadyRunning: Another process changes the shelf.
        """
        with self._alone():
            pulled = self._pull(source, report)
            self._trust_new(pulled)
            self._sweep(pulled.held.manifest.bundle_id)
        return pulled

    def find(self, bundle_id: str) -> Held | None:
        """Return a bundle that is whole on the shelf, in use or not."""
        folder = self._bundles / bundle_id
        return self._open(bundle_id) if folder.is_dir() else None

    def switch(self, bundle_id: str) -> Held:
        """Use a bundle that is on the shelf; the one in use becomes the one before.

        Raises:
            NotFound: It is not here.
            AlreadyRunning: Another process changes the shelf.
        """
        with self._alone():
            held = self.find(bundle_id)
            if held is None:
                raise NotFound(f"bundle {bundle_id} is not on this device")
            self._switch(bundle_id)
            self._sweep()
        return held

    def use_none(self) -> None:
        """Have no bundle in use; what is here stays until the next is fetched."""
        with self._alone():
            (self.home / "current").unlink(missing_ok=True)
            sync(self.home)

    def roll_back(self) -> Held:
        """Switch to the bundle before; doing so twice comes back.

        Raises:
            NotFound: There is none.
        """
        with self._alone():
            before = self._named("previous")
            if before is None:
                raise NotFound("there is no bundle before this one")
            self._switch(before.manifest.bundle_id)
        return before

    def verify(self, held: Held) -> None:
        """Check a bundle on the shelf: signature, and every byte of its parts.

        Raises:
            BundleRefused: Something in it was changed or is missing.
        """
        verify_folder(held.folder, self.trusted() or None)

    def _pull(self, source: Source, report: Report) -> Pulled:
        known = self.trusted()
        head = read_head(HeadStream(source), known or None)
        missing = [part for part in head.manifest.parts if not self._has(part)]
        total = sum(part.size_bytes for part in missing)
        check_disk(self._parts, need_bytes=total)
        done = 0
        for part in missing:
            self._fetch(source, head, part, lambda size, done=done: report(done + size, total))
            done += part.size_bytes
        held = self._assemble(head)
        reused = head.manifest.size_bytes - total
        return Pulled(held, total, reused, None if known else head.public_key)

    def _trust_new(self, pulled: Pulled) -> None:
        # Only when all else is done: a bundle that was refused introduces nobody.
        if pulled.new_key is not None:
            self.trust(pulled.new_key)

    def _open(self, bundle_id: str) -> Held:
        folder = self._bundles / bundle_id
        return Held(folder, decode((folder / MANIFEST).read_bytes()))

    def _id_in(self, name: str) -> str | None:
        try:
            return (self.home / name).read_text().strip()
        except FileNotFoundError:
            return None

    def _named(self, name: str) -> Held | None:
        bundle_id = self._id_in(name)
        return None if bundle_id is None else self.find(bundle_id)

    def _has(self, part: Part) -> bool:
        path = self._parts / part.sha256
        if not path.exists() or path.stat().st_size != part.size_bytes:
            return False
        # Read through: a part is also a file in a bundle's folder, where somebody may change it.
        return hash_file(path) == part.sha256

    def _fetch(self, source: Source, head: Head, part: Part, told: Callable[[int], None]) -> None:
        """Fetch one part, from where an earlier try ended."""
        new = self._parts / f".{part.sha256}.new"
        start = new.stat().st_size if new.exists() else 0
        if start > part.size_bytes:
            start = 0
        with new.open("r+b" if start else "wb") as stream:
            stream.seek(start)
            offset = head.offsets()[part.path] + start
            for chunk in source.read(offset, part.size_bytes - start):
                stream.write(chunk)
                told(stream.tell())
            size = stream.tell()
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
        if size < part.size_bytes:
            raise SourceUnreachable(
                f"{part.path}: the source ended after {size} of {part.size_bytes} bytes"
            )
        if hash_file(new) != part.sha256:
            # Not to be gone on from.
            new.unlink()
            raise BundleRefused(f"{part.path}: its bytes are not those the manifest names")
        new.replace(self._parts / part.sha256)
        sync(self._parts)

    def _assemble(self, head: Head) -> Held:
        folder = self._bundles / head.manifest.bundle_id
        if folder.is_dir():
            try:
                return Held(folder, verify_folder(folder, None))
            except BundleRefused:
                # Damaged since: made again.
                shutil.rmtree(folder)
        new = self._bundles / f".{head.manifest.bundle_id}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for part in head.manifest.parts:
            path = new / part.path
            path.parent.mkdir(parents=True, exist_ok=True)
            _link(self._parts / part.sha256, path)
        try:
            check_folder(new, head.manifest)
        except BundleRefused:
            shutil.rmtree(new)
            raise
        write_whole(new / SIGNATURE, head.signature)
        write_whole(new / MANIFEST, head.data)
        for path in (*(p for p in new.rglob("*") if p.is_dir()), new):
            sync(path)
        new.rename(folder)
        sync(self._bundles)
        return Held(folder, head.manifest)

    def _switch(self, bundle_id: str) -> None:
        # Nobody goes back to a damaged one.
        current = _readable(self._named, "current")
        if current is not None and current.manifest.bundle_id != bundle_id:
            write_whole(self.home / "previous", current.manifest.bundle_id.encode())
        write_whole(self.home / "current", bundle_id.encode())

    def _sweep(self, *fetched: str) -> None:
        """Remove bundles nobody switches to any more, and parts no bundle has.

        Args:
            fetched: Kept too: not switched to yet.
        """
        kept = {*fetched, self._id_in("current"), self._id_in("previous")}
        for path in self._bundles.iterdir():
            if path.name not in kept:
                shutil.rmtree(path)
        wanted = {part.sha256 for held in self.held() for part in held.manifest.parts}
        for path in self._parts.iterdir():
            if path.name not in wanted:
                path.unlink()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other process change the shelf meanwhile; the kernel lets go of a dead one."""
        for folder in (self._parts, self._bundles):
            folder.mkdir(parents=True, exist_ok=True)
        with (self.home / ".lock").open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise AlreadyRunning(f"another process changes {self.home}") from error
            yield


def verify_folder(folder: Path, trusted: set[str] | None) -> Manifest:
    """Check an unpacked bundle: signature, every byte of its parts, and that there is no more.

    Raises:
        BundleRefused: It is none, or something in it was changed or put there.
    """
    try:
        with (folder / MANIFEST).open("rb") as stream:
            data = stream.read(MAX_MANIFEST_BYTES + 1)
        signature = (folder / SIGNATURE).read_bytes()
    except OSError as error:
        raise BundleRefused(f"{folder}: not an unpacked bundle: {error}") from error
    check_signature(data, signature, trusted)
    manifest = decode(data)
    for part in manifest.parts:
        path = folder / part.path
        if not path.is_file() or path.is_symlink():
            raise BundleRefused(f"{path}: missing, or not a plain file")
        with path.open("rb") as stream:
            chunks = iter(lambda stream=stream: stream.read(1 << 20), b"")
            for _ in check_chunks(part, chunks):
                pass
    _check_no_more(folder, manifest)
    check_folder(folder, manifest)
    return manifest


def _check_no_more(folder: Path, manifest: Manifest) -> None:
    """Check that nobody put anything beside the parts: what loads a bundle would obey it."""
    signed = {MANIFEST, SIGNATURE, *(part.path for part in manifest.parts)}
    folders = {str(above) for name in signed for above in PurePosixPath(name).parents}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or name not in (folders if path.is_dir() else signed):
            raise BundleRefused(f"{name[:80]!r} in {folder} is not of the bundle")


def _readable(read: Callable[[str], Held | None], name: str) -> Held | None:
    """Return a bundle; one whose manifest is damaged is none: it keeps no other from its turn."""
    try:
        return read(name)
    except (BundleRefused, FileNotFoundError):
        return None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Some file systems have no hard links.
        shutil.copyfile(source, target)
