"""Where bundles come from: a file, or any server that answers ranges."""

import http.client
import io
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urlsplit

from maas.core.errors import SourceUnreachable
from maas.edge.runtime.shelf.timed import TimedHttp, TimedHttps

_CHUNK = 1 << 20
_HEAD_STEP = 256 << 10
_TIMEOUT_S = 30.0
_MIN_BYTES_PER_S = 1024


class Source(Protocol):
    """A bundle that can be read in parts."""

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """Yield bytes from an offset on: ``size`` of them, or fewer at the end.

        They come as they are there, so that whoever reads can give up; there may be none for a
        while.

        Raises:
            SourceUnreachable: It does not answer, stopped half way, or is all too slow.
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
        patience_s: So long it may send less than a kibibyte a second.
    """

    url: str
    key: str | None = None
    patience_s: float = 60.0

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """Yield bytes from an offset on."""
        if size <= 0:
            return
        request = urllib.request.Request(self.url)  # noqa: S310 - checked by source_of
        request.add_header("Range", f"bytes={offset}-{offset + size - 1}")
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        try:
            redirects = _Redirects(has_key=self.key is not None)
            opener = urllib.request.build_opener(redirects, TimedHttp, TimedHttps)
            with opener.open(request, timeout=_TIMEOUT_S) as answer:
                if answer.status != http.client.PARTIAL_CONTENT:
                    # A server without ranges sends all of it.
                    for _ in self._paced(answer, offset):
                        yield b""
                yield from self._paced(answer, size)
        except urllib.error.HTTPError as error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                return
            raise SourceUnreachable(f"{self.url}: {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise SourceUnreachable(f"{self.url}: {error}") from error

    def _paced(self, answer: http.client.HTTPResponse, size: int) -> Iterator[bytes]:
        """Yield bytes; only the time that is waited for them counts."""
        waited_s, num_bytes, chunks = 0.0, 0, _chunks(answer, size)
        while True:
            asked_at = time.monotonic()
            chunk = next(chunks, b"")
            waited_s += time.monotonic() - asked_at
            if not chunk:
                return
            yield chunk
            num_bytes += len(chunk)
            if waited_s < self.patience_s:
                continue
            if num_bytes < _MIN_BYTES_PER_S * waited_s:
                raise SourceUnreachable(
                    f"{self.url}: {num_bytes} bytes in {waited_s:.0f} s: too slow to go on"
                )
            waited_s, num_bytes = 0.0, 0


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows where that tells nobody on the way more than the URL did.

    Args:
        has_key: Whether the URL is one for a key: what it names may be for its owner only.
    """

    def __init__(self, *, has_key: bool) -> None:
        self._has_key = has_key

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the request to go on with.

        Raises:
            HTTPError: It leads from https to http, or with a key to another host by http.
        """
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        leaves = self._has_key and old.netloc.lower() != new.netloc.lower()
        if new.scheme != "https" and (old.scheme == "https" or leaves or new.scheme != "http"):
            why = f"refused: it leads to {new.scheme}://{new.netloc}, which is not https"
            raise urllib.error.HTTPError(req.full_url, code, why, headers, fp)
        # Or its body would be read to its end, wherever that is.
        fp.close()
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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
        chunk = stream.read1(min(_CHUNK, size))
        if not chunk:
            return
        size -= len(chunk)
        yield chunk
