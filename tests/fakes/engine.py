"""A fake engine: vLLM's wire shapes over plain ASGI, with switches for every fault.

The prompt says how to behave: ``say:WORDS`` answers them, ``flood:N`` answers N words, ``slow``
pauses between tokens, ``die`` closes the connection after two tokens, ``die-first`` before any,
``hang`` never answers, ``uncounted`` says no usage, ``cut`` ends the stream without ``[DONE]``,
``engine-error`` reports an error in the stream.
"""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

WORDS = ["The", " capital", " of", " France", " is", " Paris", "."]


@dataclass
class FakeEngine:
    """What it saw, and how it is told to behave."""

    model: str = "tiny"
    max_model_len: int = 512
    status: int = 200
    retry_after: str | None = None
    secret: str | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    num_aborts: int = 0
    num_running: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __call__(self, scope, receive, send) -> None:
        path = scope["path"]
        self.paths.append(path)
        headers = {k.decode(): v.decode("latin-1") for k, v in scope["headers"]}
        if self.secret and headers.get("authorization") != f"Bearer {self.secret}":
            await _json(send, 401, {"error": {"message": "no", "type": "x", "code": 401}})
        elif path == "/health":
            await _json(send, 200, {})
        elif path == "/v1/models":
            await _json(send, 200, {"object": "list", "data": [{"id": self.model}]})
        elif path == "/metrics":
            await _json(send, 200, {})
        else:
            await self._generate(path, headers, receive, send)

    async def _generate(self, path, headers, receive, send) -> None:
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        body = json.loads(raw)
        self.requests.append(body)
        self.headers.append(headers)
        if self.status != 200:
            text = "failed in /opt/engine/secret/path.py"
            error = {"error": {"message": text, "code": self.status}}
            await _json(send, self.status, error, retry_after=self.retry_after)
            return
        if path == "/v1/embeddings":
            await self._embed(body, send)
            return
        prompt = _prompt(body)
        if prompt == "die-first":
            raise ConnectionResetError
        if prompt == "hang":
            await asyncio.sleep(3600)
        words = WORDS
        if prompt.startswith("say:"):
            words = prompt[4:].split("|")
        elif prompt.startswith("flood:"):
            words = ["a"] * int(prompt[6:])
        self.num_running += 1
        gone = asyncio.ensure_future(_until_disconnect(receive))
        try:
            if body.get("stream"):
                await self._stream(body, prompt, words, send, gone)
            else:
                await self._whole(body, prompt, words, send, gone)
        finally:
            self.num_running -= 1
            gone.cancel()

    async def _pause(self, seconds, gone) -> bool:
        done, _ = await asyncio.wait({gone}, timeout=seconds)
        if done:
            self.num_aborts += 1
        return bool(done)

    async def _whole(self, body, prompt, words, send, gone) -> None:
        if prompt == "slow" and await self._pause(10, gone):
            return
        text = "".join(words)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        if "messages" in body:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if body.get("tools"):
                function = {"name": body["tools"][0]["function"]["name"], "arguments": "{}"}
                call = {"id": "call_1", "type": "function", "function": function}
                message = {"role": "assistant", "content": None, "tool_calls": [call]}
                choice["finish_reason"] = "tool_calls"
            choice["message"] = message
        else:
            choice["text"] = text
        count = body.get("n") or 1
        await _json(
            send,
            200,
            {
                "id": "chatcmpl-1",
                "object": "chat.completion" if "messages" in body else "text_completion",
                "created": 1,
                "model": body["model"],
                "choices": [{**choice, "index": i} for i in range(count)],
                "usage": None if prompt == "uncounted" else _usage(len(words)),
            },
        )

    async def _stream(self, body, prompt, words, send, gone) -> None:
        kind = "chat.completion.chunk" if "messages" in body else "text_completion"
        base = {"id": "chatcmpl-1", "object": kind, "created": 1, "model": body["model"]}
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def event(payload: Any) -> None:
            text = (
                payload if isinstance(payload, str) else json.dumps(payload, separators=(",", ":"))
            )
            data = f"data: {text}\n\n".encode()
            await send({"type": "http.response.body", "body": data, "more_body": True})

        for i, word in enumerate(words):
            delta = {"delta": {"role": "assistant", "content": word}}
            choice = delta if "messages" in body else {"text": word}
            finish = {"finish_reason": None}
            await event({**base, "choices": [{"index": 0, **choice, **finish}], "usage": None})
            if i == 1 and prompt == "die":
                raise ConnectionResetError
            if i == 1 and prompt == "engine-error":
                await event({"error": {"message": "EngineCore died in /opt/x/y.py", "code": 500}})
                await event("[DONE]")
                break
            if prompt == "slow" and await self._pause(0.2, gone):
                return
        else:
            last = {"delta": {}} if "messages" in body else {"text": ""}
            await event({**base, "choices": [{"index": 0, **last, "finish_reason": "stop"}]})
            options = body.get("stream_options") or {}
            if options.get("include_usage") and prompt != "uncounted":
                await event({**base, "choices": [], "usage": _usage(len(words))})
            if prompt != "cut":
                await event("[DONE]")
        await send({"type": "http.response.body", "body": b""})

    async def _embed(self, body, send) -> None:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        vector: Any = [0.6, 0.8]
        if body.get("encoding_format") == "base64":
            vector = "mpkZP83MTD8="
        data = [{"object": "embedding", "index": i, "embedding": vector} for i in range(len(texts))]
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        await _json(
            send, 200, {"object": "list", "model": body["model"], "data": data, "usage": usage}
        )


def _usage(num_tokens: int) -> dict[str, Any]:
    details = {"cached_tokens": 3}
    return {
        "prompt_tokens": 5,
        "completion_tokens": num_tokens,
        "total_tokens": 5 + num_tokens,
        "prompt_tokens_details": details,
    }


def _prompt(body: dict[str, Any]) -> str:
    if "prompt" in body:
        return body["prompt"] if isinstance(body["prompt"], str) else ""
    content = body["messages"][-1].get("content")
    return content if isinstance(content, str) else ""


async def _until_disconnect(receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _json(send, status: int, body: Any, *, retry_after: str | None = None) -> None:
    raw = json.dumps(body, separators=(",", ":")).encode()
    headers = [(b"content-type", b"application/json"), (b"x-engine-secret", b"internals")]
    if retry_after is not None:
        headers.append((b"Retry-After", retry_after.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


@contextmanager
def serve_in_thread(app: Any) -> Iterator[int]:
    """Serve an ASGI app on a free loopback port in a thread of its own; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(5)
        listener.close()


@contextmanager
def fake_engine(**switches: Any) -> Iterator[FakeEngine]:
    """Run a fake engine; yields it."""
    engine = FakeEngine(**switches)
    with serve_in_thread(engine) as port:
        engine.port = port
        yield engine
