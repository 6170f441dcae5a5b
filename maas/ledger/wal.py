"""A spender's write-ahead log: what a killed process knew and had not yet posted.

One file per segment, ``<spender>.<segment>.wal``, JSON lines and zeros after them, written through
a shared mapping before anything that depends on it happens: a copy of bytes, and no system call.
The kernel keeps what was written when the process is killed; a machine that loses power may lose
what is not in the store yet, half a second. Room is taken from the disk in advance, so a full disk
is an error here and never a signal.
The owner holds an exclusive lock on ``<spender>.lock``: a log whose lock can be had belongs to
nobody that lives.
"""

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from maas.core.errors import DiskFull
from maas.ledger.entries import Dropped, Entry, Opened, Progressed, Record

MAX_SEGMENT_BYTES = 2**20
_STEP_BYTES = 2**20
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


@dataclass(frozen=True, order=True)
class Position:
    """A place in a log: everything before it is in the journal."""

    segment: int = 0
    offset: int = 0


class _Segment:
    """One file of a log, mapped as far as it has room."""

    def __init__(self, path: Path, number: int) -> None:
        self.number = number
        self.end = 0
        self._room = _STEP_BYTES
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise DiskFull(f"the ledger's log cannot be made: {error.strerror}") from error
        try:
            os.posix_fallocate(self._file, 0, self._room)
            self._map = mmap.mmap(self._file, self._room)
        except OSError as error:
            os.close(self._file)
            path.unlink(missing_ok=True)
            raise DiskFull(f"the ledger's log cannot be made: {error.strerror}") from error

    def append(self, record: Record) -> None:
        line = _encoder.encode(record) + b"\n"
        end = self.end + len(line)
        while end > self._room:
            self._grow()
        self._map[self.end : end] = line
        self.end = end

    def _grow(self) -> None:
        room = self._room + _STEP_BYTES
        try:
            # First the disk, then the mapping: to touch one without the other is fatal.
            os.posix_fallocate(self._file, 0, room)
            self._map.resize(room)
        except OSError as error:
            raise DiskFull(f"the ledger's log cannot be written: {error.strerror}") from error
        self._room = room

    def close(self) -> None:
        self._map.close()
        os.close(self._file)


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
        # A neighbour that looks for the dead may hold it for a moment.
        self._lock = _lock(folder, spender_id, waits=True)
        if self._lock is None:
            raise RuntimeError(f"the log of {spender_id} cannot be locked")
        self._segment = self._open(0)

    def append(self, record: Record) -> None:
        """Write one record.

        Raises:
            DiskFull: It cannot be kept; what depends on it must not happen.
        """
        self._segment.append(record)

    @property
    def position(self) -> Position:
        """Where the next record goes."""
        return Position(self._segment.number, self._segment.end)

    @property
    def is_long(self) -> bool:
        """Whether it is time for another segment."""
        return self._segment.end > MAX_SEGMENT_BYTES

    def rotate(self, still_open: Iterable[Record]) -> None:
        """Go on in a new segment that begins with what is open still.

        Raises:
            DiskFull: There is no room for one; the old one goes on.
        """
        fresh = self._open(self._segment.number + 1)
        try:
            for record in still_open:
                fresh.append(record)
        except DiskFull:
            fresh.close()
            self._path(fresh.number).unlink(missing_ok=True)
            raise
        self._segment.close()
        self._segment = fresh

    def forget_before(self, position: Position) -> None:
        """Delete segments that are in the journal whole."""
        for segment, path in _segments(self._folder, self.spender_id):
            if segment < position.segment:
                path.unlink(missing_ok=True)

    def close(self, *, delete: bool) -> None:
        """Let go of the log; ``delete`` where everything is posted."""
        self._segment.close()
        if delete:
            remove(self._folder, self.spender_id)
        if self._lock is not None:
            os.close(self._lock)

    def _open(self, number: int) -> _Segment:
        return _Segment(self._path(number), number)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self.spender_id}.{number}.wal"


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
        data = path.read_bytes().rstrip(b"\0")
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


def _lock(folder: Path, spender_id: str, *, waits: bool = False) -> int | None:
    path = folder / f"{spender_id}.lock"
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(file)
            return None
        # Whoever held it may have deleted it: then this is a lock that nobody else would find.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)


def _segments(folder: Path, spender_id: str) -> list[tuple[int, Path]]:
    found = [(int(path.suffixes[-2][1:]), path) for path in folder.glob(f"{spender_id}.*.wal")]
    return sorted(found)
