"""A chat app that answers as it is told, and a real server for the Responses endpoint."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import Message, Receive, Scope, Send

from maas.core.errors import EngineError, MaasError, PayloadTooLarge
from maas.gateway.responses.routes import ResponsesApp
from maas.gateway.responses.stream import Origin


@dataclass
class ScriptedChat:
    """An ASGI app in the place of the chat route.

    Attributes:
        answer: What to send: a dict is a completion, a list is streamed chunk by chunk.
        status: The HTTP status.
        dies: Raise after the last chunk instead of ending the answer.
        waits: Never end: stay until the client leaves.
        bodies: What it was asked.
        scopes: How.
    """

    answer: dict[str, Any] | list[dict[str, Any] | bytes] = field(default_factory=dict)
    status: int = 200
    dies: bool = False
    waits: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    scopes: list[Scope] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        message = await receive()
        if message["type"] == "http.disconnect":
            # As the relay does: it answers, for the log, though nobody is taken to listen.
            headers = [(b"content-type", b"application/json"), (b"x-request-id", b"req-1")]
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            await send(_body(b'{"error":{"message":"left"}}', more=False))
            return
        self.bodies.append(json.loads(message["body"]))
        kind = b"text/event-stream" if isinstance(self.answer, list) else b"application/json"
        headers = [(b"content-type", kind), (b"x-request-id", b"req-1")]
        start = {"type": "http.response.start", "status": self.status, "headers": headers}
        await send(start)
        if isinstance(self.answer, dict):
            await send(_body(json.dumps(self.answer).encode(), more=False))
            return
        for chunk in self.answer:
            data = chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()
            await send(_body(b"data: " + data + b"\n\n", more=True))
        if self.waits:
            # The body has been read: what comes next can only be the client leaving.
            assert (await receive())["type"] == "http.disconnect"
            self.left.set()
            return
        if self.dies:
            raise ConnectionResetError
        await send(_body(b"data: [DONE]\n\n", more=False))


def _body(data: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def render_error(error: MaasError) -> tuple[int, bytes]:
    """Stands in for the gateway's table of errors."""
    status = 413 if isinstance(error, PayloadTooLarge) else 400
    if isinstance(error, EngineError):
        status = 502
    shape = {"message": error.message, "type": "x", "param": error.context.get("param")}
    return status, json.dumps({"error": {**shape, "code": error.code}}).encode()


def responses_app(chat: ScriptedChat) -> ResponsesApp:
    """The endpoint in front of a scripted chat, with ids by number and a stopped clock."""
    made = iter(range(10_000))
    origin = Origin(new_id=lambda prefix: f"{prefix}_{next(made)}", now=lambda: 7)
    return ResponsesApp(chat, render_error=render_error, origin=origin, max_body_bytes=10_000)


@contextmanager
def served(app: ResponsesApp) -> Iterator[str]:
    """Serve the app on a free port of this machine; gives its base URL."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="critical", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()
