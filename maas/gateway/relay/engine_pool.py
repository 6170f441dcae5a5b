"""Connections to all engines, kept open between requests."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from maas.core.errors import Unavailable
from maas.gateway.corked import Cork
from maas.gateway.relay.engine_http import EngineConnection, EngineResponse

KEEP_ALIVE_S = 20.0
_RECEIVE_BUFFER_BYTES = 128 << 10


@dataclass(frozen=True)
class Origin:
    """Where an engine listens.

    Attributes:
        base_path: What its URL has before the paths of the API.
        authority: Host and port as the URL has them, for the ``Host`` header.
    """

    host: str
    port: int
    is_tls: bool
    base_path: str
    authority: str


@lru_cache(maxsize=4096)
def origin_of(url: str) -> Origin:
    """Return the origin of an engine's URL."""
    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    authority = parts.netloc.rpartition("@")[2]
    return Origin(parts.hostname or "", port, is_tls, parts.path.rstrip("/"), authority)


class _ClosedUnanswered(ConnectionResetError):
    """A connection was closed before a byte of the answer came."""


@asynccontextmanager
async def _refused_after(seconds: float) -> AsyncGenerator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise ConnectionRefusedError(f"no connection within {seconds:.0f} s") from error


class EnginePool:
    """Connections to all engines. Made on the loop that uses it.

    Args:
        connect_timeout_s: For a new connection.
        idle_timeout_s: Longest silence within one answer.
        max_connections: To all engines together.
    """

    def __init__(
        self, *, connect_timeout_s: float, idle_timeout_s: float, max_connections: int
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._max_connections = max_connections
        self._num_connecting = 0
        self._open: set[EngineConnection] = set()
        self._kept: dict[Origin, list[EngineConnection]] = {}
        self._tls = ssl.create_default_context()
        self._loop = asyncio.get_running_loop()
        self._cork = Cork(self._loop)
        self._sweep_every_s = min(1.0, idle_timeout_s / 4)
        self._sweeper = self._loop.call_later(self._sweep_every_s, self._sweep)

    def stop(self) -> None:
        """Close everything."""
        self._sweeper.cancel()
        for connection in list(self._open):
            connection.abort()

    async def post(self, origin: Origin, data: bytes) -> EngineResponse:
        """Send a whole request; return its answer once its head is here.

        A kept connection that the engine closed in the meantime is no failure: the request is
        sent again on a new one, as long as no byte of an answer came.

        Raises:
            OSError: The engine cannot be reached, broke off, or was silent for too long.
            Unavailable: There are too many connections.
        """
        kept = self._kept.setdefault(origin, [])
        while kept:
            connection = kept.pop()
            if connection.is_open:
                with contextlib.suppress(_ClosedUnanswered):
                    return await _send(connection, data)
                break
        return await _send(await self._connect(origin, kept), data)

    async def _connect(self, origin: Origin, home: list[EngineConnection]) -> EngineConnection:
        if len(self._open) + self._num_connecting >= self._max_connections:
            raise Unavailable("too many requests are open; try again shortly")
        self._num_connecting += 1
        try:
            # A timeout here is a refused connection; only a silent answer is a TimeoutError.
            async with _refused_after(self._connect_timeout_s):
                transport, connection = await self._loop.create_connection(
                    lambda: EngineConnection(home, self._loop, self._cork, self._open.discard),
                    origin.host,
                    origin.port,
                    ssl=self._tls if origin.is_tls else None,
                )
        finally:
            self._num_connecting -= 1
        # A slow client's answer waits in its engine; Linux alone would keep 32 MiB of it here.
        own_socket = transport.get_extra_info("socket")
        own_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        self._open.add(connection)
        return connection

    def _sweep(self) -> None:
        """Give up silent answers, close what was not used for long."""
        now = self._loop.time()
        for connection in list(self._open):
            silent_s = now - connection.last_active
            response = connection.response
            if response is None:
                if silent_s > KEEP_ALIVE_S:
                    connection.abort()
            elif silent_s > self._idle_timeout_s and response.is_awaited:
                response.fail(TimeoutError("the engine is silent"))
        # In place: connections that are out come back into these lists.
        for kept in self._kept.values():
            kept[:] = [connection for connection in kept if connection.is_open]
        self._sweeper = self._loop.call_later(self._sweep_every_s, self._sweep)


async def _send(connection: EngineConnection, data: bytes) -> EngineResponse:
    response = connection.send(data)
    try:
        await response.head()
    except ConnectionResetError as error:
        response.close()
        if response.has_begun:
            raise
        raise _ClosedUnanswered(str(error)) from error
    except BaseException:
        response.close()
        raise
    return response
