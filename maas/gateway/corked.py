"""Writes that leave together at the end of the loop's turn.

uvloop hands every write to the kernel at once. Corked, what one turn writes to a connection
becomes one write (head and body of an answer, say), and all writes of a turn come one right
after the other, so that a reader is woken once and not many times: that halves what a write
costs (docs/adr/0006-raw-engine-client.md).
"""

import asyncio

MAX_CORKED_BYTES = 64 * 1024


class Cork:
    """What was written to in this turn of a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self._dirty: list[CorkedTransport] = []

    def add(self, transport: "CorkedTransport") -> None:
        """Flush a transport at the end of this turn."""
        if not self._dirty:
            self._call_soon(self._flush)
        self._dirty.append(transport)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for transport in dirty:
            transport.flush()


class CorkedTransport:
    """A transport whose writes leave at the end of the loop's turn, in order."""

    __slots__ = (
        "_cork",
        "_num_bytes",
        "_parts",
        "_transport",
        "abort",
        "get_extra_info",
        "is_closing",
        "pause_reading",
        "resume_reading",
        "set_protocol",
    )

    def __init__(self, transport: asyncio.Transport, cork: Cork) -> None:
        self._transport = transport
        self._cork = cork
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
            self._cork.add(self)
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
