"""Requests that wait for the cloud, on the disk.

    queue/<id>.request      what is to be sent; written once, before its client is answered
    queue/<id>.answer       what came back; written once, then the request is not sent again

Ids begin with a number that grows, which is the order they are sent in. A request without an
answer is sent, whatever was cut off when; so it can be sent twice, where the power went between the
gateway's answer and the disk. Its Idempotency-Key is the same then, and it is charged once.
"""

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from maas.core.errors import LimitExceeded, NotFound
from maas.edge.runtime.disk import sync, write_whole

log = logging.getLogger(__name__)

Status = Literal["queued", "sending", "completed", "failed"]
_REQUEST, _ANSWER = ".request", ".answer"
_ID = re.compile(r"queued-\d{10}[0-9a-f]{8}")
# Ours, and what a power cut left of them half written.
_FILE = re.compile(rf"\.?{_ID.pattern}\.(request|answer)(\.[0-9a-f]+\.new)?")


class QueuedRequest(msgspec.Struct, frozen=True):
    """What is to be sent; ``reason`` says why this device did not answer it."""

    id: str
    path: str
    body: bytes
    reason: str
    created_at: int


class QueuedAnswer(msgspec.Struct, frozen=True):
    """What came back."""

    status_code: int
    body: bytes
    request_id: str | None
    finished_at: int


@dataclass(frozen=True)
class QueueLimits:
    """How much is kept.

    Attributes:
        max_requests: Waiting and answered.
        max_bytes: Of the files of both; the answer that came last is kept whatever it takes.
        keep_answers_s: After that an answer goes.
    """

    max_requests: int = 1000
    max_bytes: int = 64 << 20
    keep_answers_s: float = 7 * 86400.0


@dataclass
class _Entry:
    size_bytes: int
    status: Status
    finished_at: int = 0


class OfflineQueue:
    """Keeps requests and their answers. May be used from any thread.

    Args:
        folder: Where; made when it is needed.
        limits: How much.
        now: The clock, in seconds since the epoch.
    """

    def __init__(
        self,
        folder: Path,
        limits: QueueLimits | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._limits = limits or QueueLimits()
        self._now = now
        self._lock = threading.Lock()
        self._entries = self._scan() if folder.is_dir() else dict[str, _Entry]()

    @property
    def num_waiting(self) -> int:
        """Requests that have no answer yet."""
        with self._lock:
            return sum(not entry.finished_at for entry in self._entries.values())

    def put(self, path: str, body: bytes, reason: str) -> QueuedRequest:
        """Keep a request; it is on the disk when this returns.

        Raises:
            LimitExceeded: There is no room for more.
        """
        with self._lock:
            last = max((_number(name) for name in self._entries), default=0)
            request_id = f"queued-{last + 1:010d}{secrets.token_hex(4)}"
            request = QueuedRequest(request_id, path, body, reason, int(self._now()))
            data = msgspec.json.encode(request)
            self._sweep(len(data))
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._folder / (request_id + _REQUEST), data, mode=0o600)
            self._entries[request_id] = _Entry(len(data), "queued")
            return request

    def take(self, passed: Collection[str] = ()) -> QueuedRequest | None:
        """Return the oldest that has no answer, to be sent now.

        Args:
            passed: Ids of those that let others pass.
        """
        with self._lock:
            for request_id in sorted(self._entries):
                entry = self._entries[request_id]
                if entry.status != "queued" or request_id in passed:
                    continue
                try:
                    request = self._request(request_id)
                except (OSError, msgspec.DecodeError):
                    log.exception("%s cannot be read any more and is dropped", request_id)
                    self._remove(request_id)
                    continue
                entry.status = "sending"
                return request
            return None

    def put_back(self, request_id: str) -> None:
        """Have a request wait again: it could not be sent."""
        with self._lock:
            entry = self._entries.get(request_id)
            if entry is not None and not entry.finished_at:
                entry.status = "queued"

    def answer(
        self, request_id: str, status_code: int, body: bytes, upstream_id: str | None = None
    ) -> None:
        """Keep what came back; nothing where the request was deleted meanwhile.

        Where there is no room for it, older answers go.
        """
        with self._lock:
            entry = self._entries.get(request_id)
            if entry is None:
                return
            kept = QueuedAnswer(status_code, body, upstream_id, int(self._now()))
            data = msgspec.json.encode(kept)
            write_whole(self._folder / (request_id + _ANSWER), data, mode=0o600)
            entry.size_bytes += len(data)
            entry.status = _status_of(kept)
            entry.finished_at = kept.finished_at
            for name in self._answered():
                if name != request_id and not self._has_room(self._entries.values(), 0):
                    self._remove(name)

    def get(self, request_id: str) -> tuple[QueuedRequest, Status, QueuedAnswer | None]:
        """Return a request, how far it is, and its answer.

        Raises:
            NotFound: There is none with this id.
        """
        with self._lock:
            entry = self._entry(request_id)
            answer = self._answer(request_id) if entry.finished_at else None
            return self._request(request_id), entry.status, answer

    def ids(self) -> list[str]:
        """Return all ids, in the order they came."""
        with self._lock:
            return sorted(self._entries)

    def delete(self, request_id: str) -> None:
        """Forget a request and its answer; one that waits is not sent.

        Raises:
            NotFound: There is none with this id.
        """
        with self._lock:
            self._entry(request_id)
            self._remove(request_id)

    def _entry(self, request_id: str) -> _Entry:
        if request_id not in self._entries:
            raise NotFound(f"no queued request has the id {request_id!r}")
        return self._entries[request_id]

    def _remove(self, request_id: str) -> None:
        # The request goes first: an answer alone is swept, a request alone would be sent again.
        for ending in (_REQUEST, _ANSWER):
            (self._folder / (request_id + ending)).unlink(missing_ok=True)
            sync(self._folder)
        del self._entries[request_id]

    def _sweep(self, need_bytes: int) -> None:
        """Drop answers whose time is over, and the oldest of the others while room is needed."""
        waiting = [entry for entry in self._entries.values() if not entry.finished_at]
        limits = self._limits
        if len(waiting) >= limits.max_requests or not self._has_room(waiting, need_bytes):
            raise LimitExceeded(
                f"the offline queue is full: {len(waiting)} requests wait for the cloud"
            )
        oldest = self._now() - limits.keep_answers_s
        for name in self._answered():
            is_full = len(self._entries) >= limits.max_requests
            has_room = not is_full and self._has_room(self._entries.values(), need_bytes)
            if has_room and self._entries[name].finished_at >= oldest:
                return
            self._remove(name)

    def _answered(self) -> list[str]:
        """Return the ids of those that have an answer, the one that had it first first."""
        found = [(e.finished_at, name) for name, e in self._entries.items() if e.finished_at]
        return [name for _, name in sorted(found)]

    def _has_room(self, entries: Iterable[_Entry], need_bytes: int) -> bool:
        size = sum(entry.size_bytes for entry in entries)
        return size + need_bytes <= self._limits.max_bytes

    def _request(self, request_id: str) -> QueuedRequest:
        data = (self._folder / (request_id + _REQUEST)).read_bytes()
        return msgspec.json.decode(data, type=QueuedRequest)

    def _answer(self, request_id: str) -> QueuedAnswer:
        data = (self._folder / (request_id + _ANSWER)).read_bytes()
        return msgspec.json.decode(data, type=QueuedAnswer)

    def _read_answer(self, request_id: str) -> QueuedAnswer | None:
        """Return an answer; one that cannot be read any more is none, and is asked for again."""
        try:
            return self._answer(request_id)
        except (OSError, msgspec.DecodeError):
            log.exception("the answer to %s cannot be read any more", request_id)
            return None

    def _scan(self) -> dict[str, _Entry]:
        """Read what an earlier process left."""
        found: dict[str, _Entry] = {}
        # What somebody else put here is left alone.
        ours = sorted(path for path in self._folder.iterdir() if _is_ours(path))
        for path in ours:
            if path.suffix != _REQUEST:
                continue
            answered = path.with_suffix(_ANSWER)
            entry = _Entry(path.stat().st_size, "queued")
            answer = self._read_answer(path.stem) if answered.exists() else None
            if answer is not None:
                entry = _Entry(
                    entry.size_bytes + answered.stat().st_size,
                    _status_of(answer),
                    answer.finished_at,
                )
            found[path.stem] = entry
        for path in ours:
            if path.stem not in found:
                # Of a deleted request, or half written: its client was told nothing.
                path.unlink()
        return found


def _is_ours(path: Path) -> bool:
    return _FILE.fullmatch(path.name) is not None and path.is_file()


def _number(request_id: str) -> int:
    return int(request_id.removeprefix("queued-")[:10])


def _status_of(answer: QueuedAnswer) -> Status:
    return "completed" if answer.status_code < 400 else "failed"
