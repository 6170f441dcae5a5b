"""HTTP/1.1 to engines: one raw connection, POST only, nothing that is not needed.

A general client builds objects for cookies, redirects, proxies and traces on each request and
wakes a task on each chunk. Here a request is one write, and a chunk can be handed on in the very
callback that read it (``EngineResponse.pipe_to``). See docs/adr/0006-raw-engine-client.md.
"""

import asyncio
import re
from collections.abc import Callable
from functools import lru_cache
from typing import cast

import httptools

from maas.gateway.corked import Cork, CorkedTransport

MAX_BUFFERED_BYTES = 256 * 1024
Sink = Callable[[bytes], None]
FramedSink = Callable[[bytes, int], bool]
_CONTINUE_STATUSES = range(100, 200)
_SECONDS = re.compile(rb"\d{1,6}")


class EngineResponse:
    """One answer, as it arrives.

    Attributes:
        status: Once ``head`` has returned.
        has_begun: Whether any byte of it came.
        is_complete: Whether all of it came.
        retry_after_s: When to come again, where its head says so in seconds.
        sink: Where its body goes while ``pipe_to`` runs.
        framed_sink: Where whole chunks are offered first, then.
    """

    __slots__ = (
        "_connection",
        "_error",
        "_num_buffered",
        "_parts",
        "_waiter",
        "framed_sink",
        "has_begun",
        "is_complete",
        "retry_after_s",
        "sink",
        "status",
    )

    def __init__(self, connection: "EngineConnection", parts: list[bytes]) -> None:
        self.status = 0
        self.has_begun = False
        self.is_complete = False
        self.retry_after_s: int | None = None
        self.sink: Sink | None = None
        self.framed_sink: FramedSink | None = None
        self._connection = connection
        self._parts = parts
        self._num_buffered = 0
        self._error: OSError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def head(self) -> int:
        """Wait for the head; return the status.

        Raises:
            OSError: The connection broke, or nothing came in time.
        """
        while not self.status:
            await self._wait()
        return self.status

    async def readany(self) -> bytes:
        """Return what has come of the body, at least a byte; nothing at its end.

        Raises:
            OSError: The connection broke, or nothing came in time.
        """
        while not self._parts:
            if self.is_complete:
                return b""
            await self._wait()
        return self._take()

    async def read(self) -> bytes:
        """Return the rest of the body.

        Raises:
            OSError: The connection broke, or nothing came in time.
        """
        parts: list[bytes] = []
        while True:
            part = await self.readany()
            if not part:
                return b"".join(parts)
            parts.append(part)

    async def pipe_to(self, sink: Sink, framed_sink: FramedSink | None = None) -> None:
        """Hand the rest of the body to ``sink`` as it is read, without waking a task for each part.

        Ends early, without an error, when ``stop_piping`` is called.

        Args:
            sink: Takes parts of the body.
            framed_sink: Offered each read that is exactly one chunk, framing and all, with the
                place where its payload begins; where it takes it (returns true), nobody
                parses it.

        Raises:
            OSError: The connection broke, or nothing came in time.
        """
        if self._parts:
            sink(self._take())
        self.sink, self.framed_sink = sink, framed_sink
        try:
            while self.sink is not None and not self.is_complete:
                await self._wait()
        finally:
            self.sink = self.framed_sink = None

    def stop_piping(self) -> None:
        """End ``pipe_to``."""
        self.sink = self.framed_sink = None
        self.wake()

    def set_paused(self, is_paused: bool) -> None:
        """Stop or go on reading from the engine: whoever is behind us cannot keep up, or can."""
        self._connection.set_paused(is_paused)

    def close(self) -> None:
        """Let go: a whole answer's connection is used again, any other one is closed at once."""
        self._connection.let_go()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for the engine, and not the engine for us."""
        return self._waiter is not None and not self._connection.is_paused

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._connection.touch()
        self._waiter = self._connection.create_future()
        await self._waiter

    def wake(self) -> None:
        """Wake whoever waits."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _take(self) -> bytes:
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._num_buffered > MAX_BUFFERED_BYTES:
            self._connection.set_paused(False)
        self._num_buffered = 0
        return data

    def deliver(self, num_bytes: int) -> None:
        """Hand on what one read of this many bytes brought."""
        if self.sink is not None:
            if self._parts:
                self.sink(self._take())
            if self.is_complete:
                self.wake()
            return
        self._num_buffered += num_bytes
        if self._num_buffered > MAX_BUFFERED_BYTES:
            self._connection.set_paused(True)
        self.wake()

    def fail(self, error: OSError) -> None:
        """End it half way."""
        if not self.is_complete:
            self._error = error
            self.wake()


def payload_start(data: bytes) -> int:
    """Return where the payload begins of a read that is exactly one chunk, and not the last one.

    Only the plainest form counts, the size in lower-case hexadecimal without zeros in front; 0
    for anything else.
    """
    head = _framing_of(len(data))
    return len(head) if data.startswith(head) and data.endswith(b"\r\n") else 0


@lru_cache(maxsize=8192)
def _framing_of(num_bytes: int) -> bytes:
    """Return how one chunk of this many bytes, framing counted, must begin."""
    for num_digits in range(1, 9):
        head = b"%x\r\n" % max(num_bytes - num_digits - 4, 0)
        if len(head) == num_digits + 2 and head != b"0\r\n":
            return head
    return b"no chunk has this length"


class EngineConnection(asyncio.Protocol):
    """One connection; carries one request at a time.

    Args:
        home: Where it waits for the next request after a whole answer.
        loop: The loop it lives on.
        cork: Of that loop.
        on_lost: Told when it is closed.

    Attributes:
        response: The answer to what was sent last, until it is let go.
        last_active: Loop time of the last byte, or of the moment somebody began to wait for one.
    """

    # Slots here and in what a chunk passes next: fewer places in memory to look at for each.
    __slots__ = (
        "_can_stay",
        "_cork",
        "_has_length",
        "_home",
        "_is_between_chunks",
        "_now",
        "_on_lost",
        "_parser",
        "_parts",
        "_transport",
        "create_future",
        "is_open",
        "is_paused",
        "last_active",
        "on_body",
        "response",
    )

    def __init__(
        self,
        home: "list[EngineConnection]",
        loop: asyncio.AbstractEventLoop,
        cork: Cork,
        on_lost: "Callable[[EngineConnection], None]",
    ) -> None:
        self.last_active = loop.time()
        self.is_open = False
        self.is_paused = False
        self.response: EngineResponse | None = None
        self._home = home
        self.create_future = loop.create_future
        self._now = loop.time
        self._cork = cork
        self._on_lost = on_lost
        self._transport: CorkedTransport | None = None
        self._parts: list[bytes] = []
        # The parser's callback for the body, and no Python frame of ours.
        self.on_body = self._parts.append
        self._is_between_chunks = False
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._has_length = False
        self._can_stay = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = CorkedTransport(cast("asyncio.Transport", transport), self._cork)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is under way."""
        self.is_open = False
        self._parser = None  # it refers back to us
        self._on_lost(self)
        response = self.response
        if response is None:
            return
        if exc is None and response.status and not self._has_length:
            # A body without a length ends with its connection (RFC 9112, 6.3).
            response.is_complete = True
            response.deliver(0)
            return
        response.fail(ConnectionResetError("the engine closed the connection"))

    def touch(self) -> None:
        """Begin to count silence from now."""
        self.last_active = self._now()

    def send(self, data: bytes) -> EngineResponse:
        """Send a whole request."""
        if self._transport is None:
            raise RuntimeError("not connected")
        self._has_length = self._can_stay = self._is_between_chunks = False
        self._parts.clear()
        response = self.response = EngineResponse(self, self._parts)
        self._transport.write(data)
        return response

    def data_received(self, data: bytes) -> None:
        """Parse what was read and hand it on."""
        response, parser = self.response, self._parser
        if response is None or parser is None:
            self.abort()  # an answer that nobody asked for
            return
        self.last_active = self._now()
        if self._is_between_chunks and response.framed_sink is not None:
            start = payload_start(data)
            if start and response.framed_sink(data, start):
                return  # the parser, between chunks before and after, has missed nothing
        response.has_begun = True
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.abort()
            response.fail(ConnectionResetError("the engine does not speak HTTP"))
            return
        # A read that ended inside the next chunk's size is not between chunks.
        self._is_between_chunks = self._is_between_chunks and data.endswith(b"\r\n")
        response.deliver(len(data))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note how the body's end will be known, and when to come again."""
        lowered = name.lower()
        if lowered in (b"content-length", b"transfer-encoding"):
            self._has_length = True
        elif lowered == b"retry-after" and self.response is not None and _SECONDS.fullmatch(value):
            self.response.retry_after_s = int(value)

    def on_headers_complete(self) -> None:
        """Note the status; interim answers (100, 103) are not the answer."""
        if self.response is None or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status not in _CONTINUE_STATUSES:
            self.response.status = status

    def on_chunk_header(self) -> None:
        """Note that a chunk has begun."""
        self._is_between_chunks = False

    def on_chunk_complete(self) -> None:
        """Note that a chunk is over."""
        self._is_between_chunks = True

    def on_message_complete(self) -> None:
        """Note the end of the answer."""
        response = self.response
        if response is not None and response.status and self._parser is not None:
            response.is_complete = True
            self._can_stay = self._parser.should_keep_alive()

    def set_paused(self, is_paused: bool) -> None:
        """Stop or go on reading."""
        if self._transport is None or self.is_paused == is_paused or not self.is_open:
            return
        self.is_paused = is_paused
        if is_paused:
            self._transport.pause_reading()
        else:
            self.touch()
            self._transport.resume_reading()

    def let_go(self) -> None:
        """Go back to the pool after a whole answer; close otherwise."""
        response, self.response = self.response, None
        if response is not None and response.is_complete and self._can_stay and self.is_open:
            self.set_paused(False)
            self._home.append(self)
        else:
            self.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()
