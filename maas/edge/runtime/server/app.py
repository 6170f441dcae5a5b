"""The server: routes of OpenAI's API, and those the platform reads an engine by."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from tokenizers import Tokenizer

from maas.core.errors import (
    CapabilityMissing,
    EngineError,
    InvalidRequest,
    MaasError,
    ModelNotFound,
    NotFound,
)
from maas.edge.runtime.engine.contract import Engine, Output
from maas.edge.runtime.server.answers import Answer, embedding_list
from maas.edge.runtime.server.requests import (
    Asked,
    asked_chat,
    asked_completion,
    chat_body,
    completion_body,
    decode,
    embedding_body,
    token_lists,
    tokenize_body,
    tokens_of_chat,
)
from maas.edge.runtime.server.templates import ChatTemplate
from maas.protocol.errors import encode_error
from maas.protocol.sse import DONE_EVENT, data_event

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 << 20
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Served:
    """What a server answers with.

    Attributes:
        name: The model's name on the wire.
        engine: Computes.
        tokenizer: The model's.
        template: Of its chats.
        adapters: Names of the adapters that answer from the start.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate
    adapters: tuple[str, ...] = ()


class EdgeServer:
    """Answers requests for one bundle and its adapters.

    Args:
        served: The bundle.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._adapters = set(served.adapters)

    def make_app(self) -> web.Application:
        """Return the application."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_as_bodies])
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_post("/v1/load_lora_adapter", self._load_adapter)
        app.router.add_post("/v1/unload_lora_adapter", self._unload_adapter)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, _: web.Request) -> web.Response:
        names = [self._served.name, *sorted(self._adapters)]
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "maas-edge"} for name in names
        ]
        return _json({"object": "list", "data": data})

    async def _metrics(self, _: web.Request) -> web.Response:
        stats = self._served.engine.stats
        values = {
            "maas_edge_requests_running": stats.num_running,
            "maas_edge_requests_waiting": stats.num_waiting,
            "maas_edge_kv_cache_usage": stats.kv_cache_usage,
            "maas_edge_tokens_total": stats.num_tokens_total,
        }
        return web.Response(text="".join(f"{name} {value}\n" for name, value in values.items()))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = decode(chat_body, await request.read())
        self._check_model(body.model)
        served = self._served
        asked = asked_chat(body, served.template, self._encode, served.engine.info)
        return await self._answer(request, asked, is_chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = decode(completion_body, await request.read())
        self._check_model(body.model)
        asked = asked_completion(body, self._encode, self._served.engine.info)
        return await self._answer(request, asked, is_chat=False)

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = decode(tokenize_body, await request.read())
        self._check_model(body.model)
        tokens = tokens_of_chat(body.messages, self._served.template, self._encode)
        return _json({"tokens": tokens, "count": len(tokens)})

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        body = decode(embedding_body, await request.read())
        self._check_model(body.model)
        if self._served.engine.info.task != "embed":
            raise CapabilityMissing("this model generates text; it has no embeddings")
        if body.dimensions is not None:
            raise CapabilityMissing("dimensions is not offered", param="dimensions")
        prompts = token_lists(body.input, self._encode)
        vectors = await asyncio.to_thread(self._served.engine.embed, prompts)
        return _json(
            embedding_list(
                vectors,
                body.model,
                num_tokens=sum(map(len, prompts)),
                is_base64=body.encoding_format == "base64",
            )
        )

    async def _load_adapter(self, request: web.Request) -> web.Response:
        body = await _adapter_body(request)
        folder = Path(body.get("lora_path", ""))
        await asyncio.to_thread(self._served.engine.load_adapter, body["lora_name"], folder)
        self._adapters.add(body["lora_name"])
        return web.Response(text=f"Success: adapter {body['lora_name']} answers.")

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        body = await _adapter_body(request)
        self._served.engine.unload_adapter(body["lora_name"])
        self._adapters.discard(body["lora_name"])
        return web.Response(text=f"Success: adapter {body['lora_name']} is gone.")

    def _check_model(self, name: str) -> None:
        if name != self._served.name and name not in self._adapters:
            raise ModelNotFound(f"no model {name!r}; here is {self._served.name!r}", param="model")

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._served.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    async def _answer(
        self, request: web.Request, asked: Asked, *, is_chat: bool
    ) -> web.StreamResponse:
        answer = Answer(asked, self._served.tokenizer, is_chat=is_chat)
        async with self._outputs(asked) as outputs:
            if asked.is_stream:
                return await self._stream(request, asked, answer, outputs, is_chat=is_chat)
            while not answer.is_over:
                index, output = await outputs.get()
                answer.take(index, output)
                outputs.end_if(answer.choices[index].finish_reason, index)
        failed = next((c.error for c in answer.choices if c.finish_reason == "error"), None)
        if failed is not None:
            raise EngineError(failed)
        return _json(answer.whole())

    async def _stream(
        self,
        request: web.Request,
        asked: Asked,
        answer: Answer,
        outputs: "_Outputs",
        *,
        is_chat: bool,
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if is_chat:
            chunks = [answer.first_chunk(index) for index in range(len(answer.choices))]
            await _send(response, chunks)
        shows_text = asked.tools.mode == "none"
        while not answer.is_over:
            index, output = await outputs.get()
            choice = answer.choices[index]
            num_before = len(choice.logprobs)
            text = answer.take(index, output)
            chunks: list[dict[str, Any]] = []
            if shows_text and (text or len(choice.logprobs) > num_before):
                chunks.append(answer.text_chunk(index, text, choice.logprobs[num_before:]))
            if choice.finish_reason == "error":
                message = choice.error or "the engine failed"
                body = encode_error(message, kind="server_error", code="engine_error")
                await response.write(data_event(body))
                return response
            if choice.finish_reason:
                outputs.end_if(choice.finish_reason, index)
                chunks += answer.end_chunks(index)
            await _send(response, chunks)
        if asked.wants_usage:
            await _send(response, [answer.usage_chunk()])
        await response.write(DONE_EVENT)
        await response.write_eof()
        return response

    @contextlib.asynccontextmanager
    async def _outputs(self, asked: Asked) -> AsyncIterator["_Outputs"]:
        """Submit all choices; whatever happens, none of them runs on afterwards."""
        adapter = None if asked.model == self._served.name else asked.model
        outputs = _Outputs(self._served.engine)
        try:
            for index, (prompt, params) in enumerate(asked.choices):
                outputs.submitted(
                    index,
                    self._served.engine.submit(
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


class _Outputs:
    """What the engine's thread gives, handed to the event loop.

    Args:
        engine: Where requests are cancelled.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Output]] = asyncio.Queue()
        self._running: dict[int, int] = {}

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

    async def get(self) -> tuple[int, Output]:
        """Return the next output, and which choice it is of."""
        return await self._queue.get()

    def end_if(self, reason: str | None, index: int) -> None:
        """Have the engine stop where a choice has its end: by a stop string it cannot know."""
        if reason is not None and index in self._running:
            self._engine.cancel(self._running.pop(index))

    def cancel(self) -> None:
        """Have the engine stop with what still runs."""
        for index in tuple(self._running):
            self.end_if("cancelled", index)


async def _adapter_body(request: web.Request) -> dict[str, str]:
    try:
        body = msgspec.json.decode(await request.read(), type=dict[str, str])
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"want lora_name and lora_path: {error}") from error
    if not body.get("lora_name"):
        raise InvalidRequest("lora_name is required", param="lora_name")
    return body


async def _send(response: web.StreamResponse, chunks: list[dict[str, Any]]) -> None:
    if chunks:
        await response.write(b"".join(data_event(msgspec.json.encode(c)) for c in chunks))


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json"
    )


@web.middleware
async def _errors_as_bodies(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except MaasError as error:
        is_ours = not isinstance(error, InvalidRequest | NotFound)
        status = 500 if is_ours else 404 if isinstance(error, NotFound) else 400
        kind = "server_error" if is_ours else "invalid_request_error"
        param = error.context.get("param")
        body = encode_error(error.message, kind=kind, code=error.code, param=param)
        return web.Response(body=body, status=status, content_type="application/json")
    except web.HTTPException as error:
        body = encode_error(
            f"{request.method} {request.path}: {error.reason}",
            kind="invalid_request_error",
            code="not_found" if error.status == 404 else "http_error",
        )
        return web.Response(body=body, status=error.status, content_type="application/json")
