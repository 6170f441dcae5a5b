"""The server's side of the fast path: corked writes, and a client to write to without awaiting.

uvloop hands every write to the kernel at once. Corked, what one turn of the loop writes to a
connection becomes one write (head and body of an answer, say), and the writes of a turn come
one after the other, which wakes their readers once and not many times. In front of a mock
engine this halves what a write costs (docs/adr/0006-raw-engine-client.md).
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from starlette.types import Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from maas.gateway.head_limit import HeadLimitedProtocol

CLIENT = "maas.client"
MAX_CORKED_BYTES = 64 * 1024


class CorkedTransport:
    """A transport whose writes leave at the end of the loop's turn, in order."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._call_soon = loop.call_soon
        self._parts: list[bytes] = []
        self._num_bytes = 0
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.set_protocol = transport.set_protocol
        self.abort = transport.abort

    def write(self, data: bytes) -> None:
        """Write at the end of this turn, or at once where a lot has come together."""
        if not self._parts:
            self._call_soon(self.flush)
        self._parts.append(data)
        self._num_bytes += len(data)
        if self._num_bytes > MAX_CORKED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        parts = self._parts
        if parts:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            self._num_bytes = 0
            if not self.is_closing():
                self._transport.write(data)

    def close(self) -> None:
        """Write what is held, then close."""
        self.flush()
        self._transport.close()


class DirectClient:
    """The client of one request, for a relay that writes from inside a read callback.

    Attributes:
        on_lost: Called when the client closes its connection.
        on_writable: Called with false when it cannot keep up, with true when it can again.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self.on_lost: Callable[[], None] | None = None
        self.on_writable: Callable[[bool], None] | None = None
        self._cycle = cycle

    @property
    def is_lost(self) -> bool:
        """Whether the client has left."""
        return self._cycle.disconnected

    @property
    def is_writable(self) -> bool:
        """Whether the client keeps up."""
        return not self._cycle.flow.write_paused

    def write(self, data: bytes) -> None:
        """Write a part of a chunked body; the head must have been sent."""
        cycle = self._cycle
        if not cycle.disconnected:
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def is_behind(self, send: Send) -> bool:
        """Whether ``send`` goes straight to this client, with nothing in between."""
        return send == self._cycle.send


def direct_client(scope: Scope, send: Send) -> DirectClient | None:
    """Return the client to write to directly; none where an app in between must see the bytes."""
    client: DirectClient | None = scope.get(CLIENT)
    return client if client is not None and client.is_behind(send) else None


class GatewayProtocol(HeadLimitedProtocol):
    """uvicorn's protocol with bounded heads, corked writes and a ``DirectClient`` in the scope."""

    _client: DirectClient | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Cork the transport."""
        corked = CorkedTransport(transport, self.loop)
        super().connection_made(cast("asyncio.Transport", corked))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the relay that its client has left."""
        super().connection_lost(exc)
        client, self._client = self._client, None
        if client is not None and client.on_lost is not None:
            client.on_lost()

    def on_headers_complete(self) -> None:
        """Add the client to the request's scope."""
        super().on_headers_complete()
        # A request that was pipelined behind another one goes the ordinary way.
        if self.cycle.scope is self.scope and not self.pipeline:
            self._client = DirectClient(self.cycle)
            cast("dict[str, Any]", self.scope)[CLIENT] = self._client

    def pause_writing(self) -> None:
        """Tell the relay that the client cannot keep up."""
        super().pause_writing()
        if self._client is not None and self._client.on_writable is not None:
            self._client.on_writable(False)

    def resume_writing(self) -> None:
        """Tell the relay that the client can go on."""
        super().resume_writing()
        if self._client is not None and self._client.on_writable is not None:
            self._client.on_writable(True)
