"""A mock engine that costs next to nothing: ``python -m benchmarks.gateway.mock_engine PORT``.

A raw asyncio protocol on uvloop. Answers are byte strings made once. Streams are written as an
engine writes them: one chunk for every running stream at each step, each chunk a write of its
own, so that a gateway in front has to take every chunk by itself.
"""

import asyncio
import json
import sys
from typing import cast

import uvloop

MODEL = "tiny"
NUM_CHUNKS = 64
STEP_S = 0.005

_HEAD_END = b"\r\n\r\n"
_CHUNKED_END = b"0\r\n\r\n"
_BASE = {"id": "chatcmpl-bench", "created": 1_700_000_000, "model": MODEL}
_USAGE = {"prompt_tokens": 40, "completion_tokens": NUM_CHUNKS, "total_tokens": 40 + NUM_CHUNKS}


def _answer(body: object) -> bytes:
    encoded = json.dumps(body, separators=(",", ":")).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(encoded)}"
    return head.encode() + _HEAD_END + encoded


def _event(fields: dict[str, object]) -> bytes:
    chunk = json.dumps(
        {**_BASE, "object": "chat.completion.chunk", **fields}, separators=(",", ":")
    )
    return b"data: " + chunk.encode() + b"\n\n"


def _delta(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _event({"choices": [choice]})


def _framed(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


WHOLE = _answer(
    {
        **_BASE,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": " word" * NUM_CHUNKS},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": _USAGE,
    }
)
MODELS = _answer({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0}]})
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
FIRST = _framed(_delta({"role": "assistant", "content": ""}))
TOKEN = _framed(_delta({"content": " word"}))
# The last token says why it ended; usage and [DONE] come with it, as from vLLM.
LAST = _framed(_delta({"content": " word"}, "stop"))
USAGE = _framed(_event({"choices": [], "usage": _USAGE}))
DONE = _framed(b"data: [DONE]\n\n")


class Steps:
    """The engine's loop: every step, each running stream gets its next chunk."""

    def __init__(self) -> None:
        self._streams: dict[MockEngine, int] = {}
        self._is_ticking = False

    def add(self, stream: "MockEngine") -> None:
        """Start a stream at the next step."""
        self._streams[stream] = 0
        if not self._is_ticking:
            self._is_ticking = True
            asyncio.get_running_loop().call_later(STEP_S, self._step)

    def drop(self, stream: "MockEngine") -> None:
        """Forget a stream whose client left."""
        self._streams.pop(stream, None)

    def _step(self) -> None:
        for stream, num_sent in list(self._streams.items()):
            self._streams[stream] = num_sent + 1
            if stream.send_token(num_sent):
                del self._streams[stream]
        if self._streams:
            asyncio.get_running_loop().call_later(STEP_S, self._step)
        else:
            self._is_ticking = False


class MockEngine(asyncio.Protocol):
    """One connection. Reads heads just far enough to find the end of each request."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None
        self._wants_usage = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast("asyncio.WriteTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Abort what runs on this connection."""
        self._steps.drop(self)
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Answer a request once it is whole."""
        self._buffer += data
        head, separator, body = self._buffer.partition(_HEAD_END)
        if not separator:
            return
        lowered = head.lower()
        at = lowered.find(b"content-length:")
        size = int(lowered[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if b"transfer-encoding: chunked" in lowered:
            if not body.endswith(_CHUNKED_END):
                return
        elif len(body) < size:
            return
        self._buffer = b""
        self._respond(head, body)

    def _respond(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET"):
            self._write(MODELS)
        elif b'"stream":true' in body or b'"stream": true' in body:
            self._wants_usage = b"include_usage" in body
            self._write(STREAM_HEAD + FIRST)
            self._steps.add(self)
        else:
            self._write(WHOLE)

    def send_token(self, num_sent: int) -> bool:
        """Write the next chunk; return whether it was the last one."""
        is_last = num_sent + 1 == NUM_CHUNKS
        if not is_last:
            self._write(TOKEN)
            return False
        self._write(LAST)
        if self._wants_usage:
            self._write(USAGE)
        self._write(DONE + _CHUNKED_END)
        return True

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def _serve(port: int) -> None:
    steps = Steps()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: MockEngine(steps), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
