"""Where bundles come from: a file, or any server that answers ranges."""

import http.client
import io
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from maas.core.errors import SourceUnreachable

_CHUNK = 1 << 20
_HEAD_STEP = 256 << 10
_TIMEOUT_S = 30.0


class Source(Protocol):
    """A bundle that can be read in parts."""

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """Yield bytes from an offset on: ``size`` of them, or fewer at the end.

        Raises:
            SourceUnreachable: It does not answer, or stopped half way.
        """
        ...


@dataclass(frozen=True)
class FileSource:
    """A bundle on this machine's disk."""

    path: Path

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """Yield bytes from an offset on."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(offset)
                yield from _chunks(stream, size)
        except OSError as error:
            raise SourceUnreachable(f"{self.path}: {error.strerror or error}") from error


@dataclass(frozen=True)
class HttpSource:
    """A bundle behind a URL.

    Attributes:
        url: http or https.
        key: Sent as bearer token; not told to another host that the server may name.
    """

    url: str
    key: str | None = None

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """Yield bytes from an offset on."""
        if size <= 0:
            return
        request = urllib.request.Request(self.url)  # noqa: S310 - checked by source_of
        request.add_header("Range", f"bytes={offset}-{offset + size - 1}")
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
                if answer.status != http.client.PARTIAL_CONTENT:
                    # A server without ranges sends all of it.
                    for _ in _chunks(answer, offset):
                        pass
                yield from _chunks(answer, size)
        except urllib.error.HTTPError as error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                return
            raise SourceUnreachable(f"{self.url}: {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise SourceUnreachable(f"{self.url}: {error}") from error


def source_of(text: str, key: str | None = None) -> Source:
    """Return the source a user names: a path or a URL."""
    if text.startswith(("http://", "https://")):
        return HttpSource(text, key)
    return FileSource(Path(text))


class HeadStream:
    """The begin of a source as a stream: fetched in steps, as far as it is read.

    Args:
        source: What to read.
    """

    def __init__(self, source: Source) -> None:

        self._source = source
        self._data = bytearray()
        self._place = 0
        self._is_over = False

    def read(self, size: int) -> bytes:
        """Return the next bytes; fewer at the end."""
        while not self._is_over and len(self._data) < self._place + size:
            fetched = b"".join(self._source.read(len(self._data), _HEAD_STEP))
            self._is_over = len(fetched) < _HEAD_STEP
            self._data += fetched
        found = bytes(self._data[self._place : self._place + size])
        self._place += len(found)
        return found


def _chunks(stream: "io.BufferedIOBase | http.client.HTTPResponse", size: int) -> Iterator[bytes]:
    while size > 0:
        chunk = stream.read(min(_CHUNK, size))
        if not chunk:
            return
        size -= len(chunk)
        yield chunk
