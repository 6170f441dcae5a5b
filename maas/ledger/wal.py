"""A spender's write-ahead log: what a killed process knew and had not yet posted.

One file per segment, ``<spender>.<segment>.wal``, JSON lines, appended with one system call a
record before anything that depends on it happens. The kernel keeps what was written when the
process is killed; a machine that loses power may lose what it had not flushed, half a second.
The owner holds an exclusive lock on ``<spender>.lock``: a log whose lock can be had belongs to
nobody that lives.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from maas.core.errors import DiskFull
from maas.ledger.entries import Dropped, Entry, Opened, Progressed, Record

MAX_SEGMENT_BYTES = 8 * 2**20
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


@dataclass(frozen=True, order=True)
class Position:
    """A place in a log: everything before it is in the journal."""

    segment: int = 0
    offset: int = 0


class WriteAheadLog:
    """The log of a living spender.

    Args:
        folder: Where logs are.
        spender_id: Whose it is; no two share an id.

    Raises:
        DiskFull: No room to write.
    """

    def __init__(self, folder: Path, spender_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self.spender_id = spender_id
        self._lock = _lock(folder, spender_id)
        if self._lock is None:
            raise RuntimeError(f"the log of {spender_id} has an owner")
        self.position = Position()
        self._file = self._open()

    def append(self, record: Record) -> None:
        """Write one record.

        Raises:
            DiskFull: It cannot be kept; what depends on it must not happen.
        """
        line = _encoder.encode(record) + b"\n"
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise DiskFull(f"the ledger's log cannot be written: {error.strerror}") from error
        self.position = Position(self.position.segment, self.position.offset + written)
        if written != len(line):
            # End the torn line, so that it spoils no other; its reader drops it.
            with contextlib.suppress(OSError):
                os.write(self._file, b"\n")
            raise DiskFull("the ledger's log cannot be written: no space left")

    @property
    def is_long(self) -> bool:
        """Whether it is time for another segment."""
        return self.position.offset > MAX_SEGMENT_BYTES

    def rotate(self, still_open: Iterable[Record]) -> None:
        """Go on in a new segment that begins with what is open still."""
        os.close(self._file)
        self.position = Position(self.position.segment + 1, 0)
        self._file = self._open()
        for record in still_open:
            self.append(record)

    def forget_before(self, position: Position) -> None:
        """Delete segments that are in the journal whole."""
        for segment, path in _segments(self._folder, self.spender_id):
            if segment < position.segment:
                path.unlink(missing_ok=True)

    def close(self, *, delete: bool) -> None:
        """Let go of the log; ``delete`` where everything is posted."""
        os.close(self._file)
        if delete:
            remove(self._folder, self.spender_id)
        if self._lock is not None:
            os.close(self._lock)

    def _open(self) -> int:
        path = self._folder / f"{self.spender_id}.{self.position.segment}.wal"
        try:
            return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise DiskFull(f"the ledger's log cannot be made: {error.strerror}") from error


@dataclass(frozen=True)
class Remains:
    """What a dead spender's log says beyond a position."""

    entries: tuple[Entry, ...]
    orphans: tuple[tuple[Opened, int], ...]
    """Reservations nobody settled, with the tokens that were seen to go out."""
    end: Position


def read(folder: Path, spender_id: str, position: Position) -> Remains:
    """Read what comes after a position, and what was open there."""
    entries: list[Entry] = []
    opened: dict[str, Opened] = {}
    progress: dict[str, int] = {}
    end = position
    for segment, path in _segments(folder, spender_id):
        data = path.read_bytes()
        offset = 0
        for line in data.splitlines(keepends=True):
            start, offset = Position(segment, offset), offset + len(line)
            record = _decode(line)
            match record:
                case Opened():
                    opened[record.id] = record
                case Progressed():
                    progress[record.id] = record.output_tokens
                case Dropped():
                    opened.pop(record.id, None)
                case Entry():
                    opened.pop(record.id, None)
                    if start >= position:
                        entries.append(record)
                case _:
                    pass
        end = max(end, Position(segment, offset))
    orphans = tuple((record, progress.get(record.id, 0)) for record in opened.values())
    return Remains(tuple(entries), orphans, end)


def _decode(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None  # cut off by the kill
    try:
        return _decoder.decode(line)
    except msgspec.DecodeError:
        return None  # torn: never acknowledged to anybody


def remove(folder: Path, spender_id: str) -> None:
    """Delete a log that is in the journal whole."""
    for _, path in _segments(folder, spender_id):
        path.unlink(missing_ok=True)
    (folder / f"{spender_id}.lock").unlink(missing_ok=True)


def abandoned(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield logs whose owners are dead, each with its lock held until the next one is asked for."""
    for path in sorted(folder.glob("*.lock")):
        lock = _lock(folder, path.stem)
        if lock is None:
            continue
        try:
            yield path.stem, lock
        finally:
            os.close(lock)


def _lock(folder: Path, spender_id: str) -> int | None:
    path = folder / f"{spender_id}.lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _segments(folder: Path, spender_id: str) -> list[tuple[int, Path]]:
    found = [(int(path.suffixes[-2][1:]), path) for path in folder.glob(f"{spender_id}.*.wal")]
    return sorted(found)
