"""The server: routes of OpenAI's API, and those the platform reads an engine by."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from maas.core.errors import CapabilityMissing, EngineError, ModelNotFound
from maas.edge.runtime.engine.contract import Engine, EngineStats, Output
from maas.edge.runtime.server.answers import Answer, embedding_list
from maas.edge.runtime.server.counters import Counters
from maas.edge.runtime.server.errors import errors_as_bodies, note_start
from maas.edge.runtime.server.reading import Readers, encoder_of
from maas.edge.runtime.server.requests import (
    Asked,
    asked_chat,
    asked_completion,
    chat_body,
    check_tokens,
    completion_body,
    decode,
    embedding_body,
    token_lists,
    tokenize_body,
    tokens_of_chat,
)
from maas.edge.runtime.server.served import Served, Serving
from maas.protocol.errors import encode_error
from maas.protocol.sse import DONE_EVENT, data_event

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 << 20
SERVED_BY = "x-maas-served-by"


class EdgeServer:
    """Answers requests for one bundle and its adapters.

    Args:
        serving: Lends the bundle.
        counters: Told what was answered.
        middlewares: Asked before the bundle is, errors of theirs being answered as its own are.
    """

    def __init__(
        self,
        serving: Serving,
        counters: Counters | None = None,
        middlewares: Sequence[Middleware] = (),
    ) -> None:
        self._serving = serving
        self._counters = counters or Counters()
        self._middlewares = middlewares
        self._readers = Readers()

    def make_app(self) -> web.Application:
        """Return the application."""
        middlewares = (errors_as_bodies, *self._middlewares)
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=middlewares)
        app.on_response_prepare.append(_say_who_served)
        app.on_response_prepare.append(note_start)
        app.on_cleanup.append(self._readers.close)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/v1/embeddings", self._embeddings)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        with self._serving.use() as served:
            return _json({"pace": served.engine.stats.pace})

    async def _models(self, _: web.Request) -> web.Response:
        served = self._serving.current
        names = [served.name, *sorted(served.adapters)] if served else []
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "maas-edge"} for name in names
        ]
        return _json({"object": "list", "data": data})

    async def _metrics(self, _: web.Request) -> web.Response:
        served, counters = self._serving.current, self._counters
        stats = served.engine.stats if served else EngineStats(0, 0, 0, 0.0)
        values = {
            "maas_edge_requests_running": stats.num_running,
            "maas_edge_requests_waiting": stats.num_waiting,
            "maas_edge_kv_cache_usage": stats.kv_cache_usage,
            "maas_edge_tokens_total": stats.num_tokens_total,
            "maas_edge_fallbacks_total": counters.num_fallbacks,
            "maas_edge_pace_share": stats.pace.share,
        }
        return web.Response(text="".join(f"{name} {value}\n" for name, value in values.items()))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = decode(chat_body, raw)
        with self._serving.use() as served:
            _check_model(served, body.model)
            encode, info = encoder_of(served, "messages"), served.engine.info
            asked = await self._readers.read(
                raw, asked_chat, body, served.template, encode, info, served.reads_tools
            )
            return await self._answer(request, served, asked, is_chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = decode(completion_body, raw)
        with self._serving.use() as served:
            _check_model(served, body.model)
            encode, info = encoder_of(served, "prompt"), served.engine.info
            asked = await self._readers.read(raw, asked_completion, body, encode, info)
            return await self._answer(request, served, asked, is_chat=False)

    async def _tokenize(self, request: web.Request) -> web.Response:
        raw = await request.read()
        body = decode(tokenize_body, raw)
        with self._serving.use() as served:
            _check_model(served, body.model)
            encode = encoder_of(served, "messages")
            tokens = await self._readers.read(
                raw, tokens_of_chat, body.messages, served.template, encode
            )
        return _json({"tokens": tokens, "count": len(tokens)})

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = decode(embedding_body, raw)
        with self._serving.use() as served:
            _check_model(served, body.model)
            if served.engine.info.task != "embed":
                raise CapabilityMissing("this model generates text; it has no embeddings")
            if body.dimensions is not None:
                raise CapabilityMissing("dimensions is not offered", param="dimensions")
            encode = encoder_of(served, "input")
            prompts = await self._readers.read(raw, token_lists, body.input, encode)
            for prompt in prompts:
                check_tokens(prompt, served.engine.info, "input")
            vectors = await asyncio.to_thread(served.engine.embed, prompts)
        return _json(
            embedding_list(
                vectors,
                body.model,
                num_tokens=sum(map(len, prompts)),
                is_base64=body.encoding_format == "base64",
            )
        )

    async def _answer(
        self, request: web.Request, served: Served, asked: Asked, *, is_chat: bool
    ) -> web.StreamResponse:
        if asked.grammar is not None:
            await self._readers.compile(served.engine, asked.grammar)
        answer = Answer(asked, served.tokenizer, is_chat=is_chat)
        async with self._outputs(served, asked) as outputs:
            # Nothing is sent before: what fails here can still be answered by somebody else.
            await outputs.wait_first()
            if asked.is_stream:
                return await _stream(request, asked, answer, outputs, is_chat=is_chat)
            while not answer.is_over:
                index, output = await outputs.get()
                answer.take(index, output)
                outputs.end_if(answer.choices[index].finish_reason, index)
        return _json(answer.whole())

    @contextlib.asynccontextmanager
    async def _outputs(self, served: Served, asked: Asked) -> AsyncIterator["_Outputs"]:
        """Submit all choices; whatever happens, none of them runs on afterwards."""
        adapter = None if asked.model == served.name else asked.model
        outputs = _Outputs(served.engine)
        try:
            for index, (prompt, params) in enumerate(asked.choices):
                outputs.submitted(
                    index,
                    served.engine.submit(
                        prompt,
                        params,
                        outputs.listener(index),
                        adapter=adapter,
                        cache_salt=asked.cache_salt,
                    ),
                )
            yield outputs
        finally:
            outputs.cancel()
            self._counters.answered(
                outputs.num_tokens, outputs.decode_s, num_choices=len(asked.choices)
            )


class _Outputs:
    """What the engine's thread gives, handed to the event loop.

    Args:
        engine: Where requests are cancelled.

    Attributes:
        num_tokens: Got so far.
        decode_s: From the first to the last of them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Output]] = asyncio.Queue()
        self._first: tuple[int, Output] | None = None
        self._running: dict[int, int] = {}
        self._started: float | None = None
        self.num_tokens = 0
        self.decode_s = 0.0

    def listener(self, index: int) -> Callable[[Output], None]:
        """Return what the engine calls for one choice."""

        def on_output(output: Output) -> None:
            with contextlib.suppress(RuntimeError):
                # The loop is closed when the server stops.
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, output))

        return on_output

    def submitted(self, index: int, request_id: int) -> None:
        """Remember a request."""
        self._running[index] = request_id

    async def wait_first(self) -> None:
        """Wait until there is something to tell.

        Raises:
            EngineError: The engine failed, or was closed.
        """
        self._first = await self.get()

    async def get(self) -> tuple[int, Output]:
        """Return the next output, and which choice it is of.

        Raises:
            EngineError: The engine failed, or was closed.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        index, output = await self._queue.get()
        if output.finish_reason == "error":
            raise EngineError(output.error or "the engine failed")
        if output.finish_reason == "cancelled" and index in self._running:
            # By nobody here.
            raise EngineError("the engine was closed")
        now = time.perf_counter()
        self._started = self._started or now
        self.decode_s = now - self._started
        self.num_tokens += len(output.token_ids)
        return index, output

    def end_if(self, reason: str | None, index: int) -> None:
        """Have the engine stop where a choice has its end: by a stop string it cannot know."""
        if reason is not None and index in self._running:
            self._engine.cancel(self._running.pop(index))

    def cancel(self) -> None:
        """Have the engine stop with what still runs."""
        for index in tuple(self._running):
            self.end_if("cancelled", index)


async def _stream(
    request: web.Request, asked: Asked, answer: Answer, outputs: _Outputs, *, is_chat: bool
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    if is_chat:
        await _send(response, [answer.first_chunk(index) for index in range(len(answer.choices))])
    try:
        while not answer.is_over:
            await _send(response, _next_chunks(answer, *await outputs.get(), outputs))
    except EngineError as error:
        body = encode_error(error.message, kind="server_error", code=error.code)
        await response.write(data_event(body))
        return response
    if asked.wants_usage:
        await _send(response, [answer.usage_chunk()])
    await response.write(DONE_EVENT)
    await response.write_eof()
    return response


def _next_chunks(
    answer: Answer, index: int, output: Output, outputs: _Outputs
) -> list[dict[str, Any]]:
    """Return what is to be sent of an output."""
    choice = answer.choices[index]
    num_before = len(choice.logprobs)
    text = answer.take(index, output)
    chunks = answer.chunks(index, text, choice.logprobs[num_before:])
    if choice.finish_reason:
        outputs.end_if(choice.finish_reason, index)
        chunks += answer.end_chunks(index)
    return chunks


def _check_model(served: Served, name: str) -> None:
    if name != served.name and name not in served.adapters:
        raise ModelNotFound(f"no model {name!r}; here is {served.name!r}", param="model")


async def _say_who_served(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.setdefault(SERVED_BY, "device")


async def _send(response: web.StreamResponse, chunks: list[dict[str, Any]]) -> None:
    if chunks:
        await response.write(b"".join(data_event(msgspec.json.encode(c)) for c in chunks))


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json"
    )
