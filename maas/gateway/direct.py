"""The server's side of the fast path: a client that is written to without awaiting."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from starlette.types import Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from maas.gateway.corked import Cork, CorkedTransport
from maas.gateway.head_limit import HeadLimitedProtocol

CLIENT = "maas.client"
_CORK = "maas.cork"


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
        # Writes a part of a chunked body that has its framing already; a lost client's transport
        # is closed and takes nothing.
        self.write_framed: Callable[[bytes], None] = cycle.transport.write

    @property
    def is_lost(self) -> bool:
        """Whether the client has left."""
        return self._cycle.disconnected

    @property
    def has_whole_body(self) -> bool:
        """Whether the request's body has been read to its end."""
        return not self._cycle.more_body

    @property
    def is_writable(self) -> bool:
        """Whether the client keeps up."""
        return not self._cycle.flow.write_paused

    def write(self, data: bytes) -> None:
        """Write a part of a chunked body; the head must have been sent."""
        cycle = self._cycle
        if not cycle.disconnected:
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def respond(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Write a whole answer in one piece.

        Args:
            status: HTTP status.
            headers: Names in lower case; ``content-length`` is added. They are written as they
                are: nothing in them may come from outside unchecked.
            body: All of it.
        """
        cycle = self._cycle
        if cycle.disconnected:
            return
        parts = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *headers):
            parts += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"content-length: %d\r\n\r\n" % len(body), body)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(b"".join(parts))
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def is_behind(self, send: Send) -> bool:
        """Whether ``send`` goes straight to this client, with nothing in between."""
        return send == self._cycle.send


def direct_client(scope: Scope, send: Send) -> DirectClient | None:
    """Return the client to write to directly; none where an app in between must see the bytes.

    It is taken out of the scope, which it holds: together they would wait for the collector.
    """
    client: DirectClient | None = cast("dict[str, Any]", scope).pop(CLIENT, None)
    return client if client is not None and client.is_behind(send) else None


class GatewayProtocol(HeadLimitedProtocol):
    """uvicorn's protocol with bounded heads, corked writes and a ``DirectClient`` in the scope."""

    _client: DirectClient | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Cork the transport."""
        # One cork for all connections of this server.
        cork = self.app_state.get(_CORK) or self.app_state.setdefault(_CORK, Cork(self.loop))
        corked = CorkedTransport(transport, cork)
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
