"""Bounds the head of a request, which uvicorn's httptools protocol does not.

Without it anybody, without a key, can make the gateway hold a header of any size, or hold
any number of connections open by sending a head slowly or not at all.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 30.0


class HeadLimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, closing connections whose head is too long or too slow."""

    head_timeout_s = HEAD_TIMEOUT_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_in_head = False
        self._num_head_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for the first head."""
        super().connection_made(transport)
        self._begin_head()
        self._deadline = self.loop.call_later(self.head_timeout_s, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._end_head()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Start counting a head."""
        super().on_message_begin()
        self._begin_head()

    def on_headers_complete(self) -> None:
        """Stop counting: what comes now is the body, which the relay bounds."""
        self._end_head()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Parse; refuse a head that is over the limit and still not complete."""
        super().data_received(data)
        if not self._is_in_head:
            return
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.head_timeout_s, self._give_up)
        self._num_head_bytes += len(data)
        if self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._end_head()
            self.send_400_response(f"The head of the request is over {MAX_HEAD_BYTES} bytes.")

    def _begin_head(self) -> None:
        self._end_head()
        self._is_in_head = True
        self._num_head_bytes = 0

    def _end_head(self) -> None:
        self._is_in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
