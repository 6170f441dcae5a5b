"""A bounded closed-loop load generator on raw asyncio: each connection asks, reads, asks again."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import cast

_HEAD_END = b"\r\n\r\n"
_CHUNKED_END = b"0\r\n\r\n"
_PROMPT = "Tell me about the sea, the lighthouse and its keeper, in about sixty words, please. " * 4


@dataclass(frozen=True)
class Load:
    """What is asked.

    Attributes:
        is_stream: Whether answers are streamed.
        num_connections: Requests held open at a time.
        seconds: After this no connection asks again.
        max_requests: Nor after so many requests of all connections; none for no bound.
    """

    is_stream: bool
    num_connections: int
    seconds: float
    max_requests: int | None = None

    def goes_on(self, num_asked: int, deadline: float) -> bool:
        """Say whether another request is asked."""
        is_enough = self.max_requests is not None and num_asked >= self.max_requests
        return not is_enough and time.perf_counter() < deadline


@dataclass
class Tally:
    """What came back.

    Attributes:
        num_asked: Requests sent.
        num_reads: Times that bytes arrived; below ``num_chunks`` where something put chunks
            together on the way.
        num_chunks: Streamed ``data:`` events.
        num_errors: Answers that were not a 200, or not whole.
    """

    num_asked: int = 0
    num_requests: int = 0
    num_chunks: int = 0
    num_reads: int = 0
    num_errors: int = 0
    seconds: float = 0.0
    error: str = ""


def request_bytes(port: int, *, model: str, key: str | None, is_stream: bool) -> bytes:
    """Return one whole chat request."""
    body: dict[str, object] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": _PROMPT},
        ],
        "max_tokens": 64,
        "temperature": 0.7,
    }
    if is_stream:
        body["stream"] = True
    encoded = json.dumps(body, separators=(",", ":")).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
    if key is not None:
        head += f"authorization: Bearer {key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(encoded)}"
    return head.encode() + _HEAD_END + encoded


def is_whole(answer: bytes) -> bool:
    """Say whether an HTTP answer is complete: by length, or by its last chunk."""
    head, separator, body = answer.partition(_HEAD_END)
    if not separator:
        return False
    lowered = head.lower()
    at = lowered.find(b"content-length:")
    if at >= 0:
        return len(body) >= int(lowered[at + 15 :].split(b"\r\n", 1)[0])
    return answer.endswith(_CHUNKED_END)


class _Client(asyncio.Protocol):
    """One connection in the closed loop."""

    def __init__(self, request: bytes, tally: Tally, deadline: float, load: Load) -> None:
        self.is_over = asyncio.get_running_loop().create_future()
        self._request = request
        self._tally = tally
        self._deadline = deadline
        self._load = load
        self._is_stream = load.is_stream
        self._parts: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._ask_or_finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_over.done():
            self._fail(f"connection closed: {exc}")

    def data_received(self, data: bytes) -> None:
        self._tally.num_reads += 1
        self._parts.append(data)
        # A cheap look first: only what may be the end is put together and looked at in full.
        if self._is_stream and not data.endswith(_CHUNKED_END) and len(self._parts) > 1:
            return
        answer = b"".join(self._parts)
        if is_whole(answer):
            self._parts.clear()
            self._count(answer)

    def _count(self, answer: bytes) -> None:
        if not answer.startswith(b"HTTP/1.1 200"):
            self._fail(answer[:300].decode(errors="replace"))
            return
        if self._is_stream:
            if b"data: [DONE]" not in answer:
                self._fail("a stream ended without [DONE]")
                return
            self._tally.num_chunks += answer.count(b"data: {")
        self._tally.num_requests += 1
        self._ask_or_finish()

    def _ask_or_finish(self) -> None:
        tally, transport = self._tally, self._transport
        if transport is not None and self._load.goes_on(tally.num_asked, self._deadline):
            tally.num_asked += 1
            transport.write(self._request)
        else:
            self._finish()

    def _fail(self, text: str) -> None:
        self._tally.num_errors += 1
        self._tally.error = text
        self._finish()

    def _finish(self) -> None:
        if not self.is_over.done():
            self.is_over.set_result(None)
        if self._transport is not None:
            self._transport.close()


async def run_load(port: int, request: bytes, load: Load) -> Tally:
    """Run one round against a port; ends when every connection has its last answer."""
    tally = Tally()
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    deadline = started + load.seconds
    clients: list[_Client] = []
    for _ in range(load.num_connections):
        _, client = await loop.create_connection(
            lambda: _Client(request, tally, deadline, load), "127.0.0.1", port
        )
        clients.append(client)
    async with asyncio.timeout(load.seconds + 60):
        await asyncio.gather(*(client.is_over for client in clients))
    tally.seconds = time.perf_counter() - started
    return tally
