"""``POST /v1/responses`` as an ASGI app in front of the one that answers chat completions.

The chat app does all that is not translation: keys, limits, choosing a replica, retries,
request ids, metering, and aborting the engine when the client goes away. It reads its
body through ``_Exchange.receive``, which reads the client's and translates it (so after
the chat app has checked the key), and answers through ``_Exchange.send``, which
translates back. An error is passed on with its fields named as this API names them.
"""

from collections.abc import Callable

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas.core.errors import EngineError, MaasError, PayloadTooLarge
from maas.gateway.relay.app import SHOWN_ROUTE
from maas.gateway.responses.request import ParsedRequest, parse_request
from maas.gateway.responses.stream import Origin, ResponseStream, whole_response
from maas.gateway.responses.to_chat import chat_body

Headers = list[tuple[bytes, bytes]]
RenderError = Callable[[MaasError], tuple[int, bytes]]
"""Gives the HTTP status and the JSON body of an error."""

CHAT_PATH = "/v1/chat/completions"
HTTP_OK = 200
_OF_THE_BODY = frozenset({b"content-length", b"content-type", b"transfer-encoding", b"trailer"})
_EVENT_STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
)
_OUR_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "reasoning_effort": "reasoning.effort",
}


class _ErrorDetail(msgspec.Struct):
    message: str
    type: str | None = None
    param: str | None = None
    code: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetail


class ResponsesApp:
    """The endpoint.

    Args:
        chat: Answers ``POST /v1/chat/completions``.
        render_error: The gateway's one mapping of errors to HTTP.
        origin: Where ids and times come from.
        max_body_bytes: Bodies over this are refused, as they are on the chat route.
    """

    def __init__(
        self, chat: ASGIApp, *, render_error: RenderError, origin: Origin, max_body_bytes: int
    ) -> None:
        self._chat = chat
        self._render_error = render_error
        self._origin = origin
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = _Exchange(receive, send, self._origin, max_body_bytes=self._max_body_bytes)
        try:
            await self._chat(_chat_scope(scope), exchange.receive, exchange.send)
        finally:
            # Also when the chat app fails: a stream that began must get its failure event.
            await exchange.finish()
        if exchange.refusal is not None:
            status, body = self._render_error(exchange.refusal)
            headers = exchange.headers
            if exchange.refusal.context.get("close"):
                headers = [*headers, (b"connection", b"close")]
            await _send_json(send, status, body, headers=headers)


class _Exchange:
    """One request and its answer, translated on the way in and on the way out."""

    def __init__(
        self, receive: Receive, send: Send, origin: Origin, *, max_body_bytes: int
    ) -> None:
        self._receive = receive
        self._send = send
        self._origin = origin
        self._max_body_bytes = max_body_bytes
        self._request: ParsedRequest | None = None
        self._is_ended = False
        self._stream: ResponseStream | None = None
        self._whole: bytearray | None = None
        self._status = 200
        self.headers: Headers = []
        self.refusal: MaasError | None = None

    async def receive(self) -> Message:
        """Give the chat app its body; after that, what the client does (leave)."""
        if self.refusal is not None:
            return {"type": "http.disconnect"}
        if self._request is not None:
            return await self._receive()
        try:
            raw = await self._read()
            if raw is None:
                return {"type": "http.disconnect"}
            self._request = parse_request(raw)
        except MaasError as error:
            # The chat app is told that the client has left; the refusal is sent after it.
            self.refusal = error
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chat_body(self._request), "more_body": False}

    async def send(self, message: Message) -> None:
        """Take what the chat app answers and send the client what it means."""
        if message["type"] == "http.response.start":
            await self._start(message)
        elif message["type"] == "http.response.body" and not self._is_ended:
            await self._body(message.get("body", b""), is_last=not message.get("more_body"))

    async def finish(self) -> None:
        """End an answer that the chat app began and did not end."""
        has_begun = self._stream is not None or self._whole is not None
        if has_begun and not self._is_ended:
            await self._body(b"", is_last=True)

    async def _read(self) -> bytes | None:
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise PayloadTooLarge(
                    f"the body is over {self._max_body_bytes} bytes; send a shorter input",
                    close=True,  # the rest of it is still on its way
                )
            if not message.get("more_body"):
                return bytes(body)

    async def _start(self, message: Message) -> None:
        headers = [(name.lower(), value) for name, value in message.get("headers", ())]
        self.headers = [pair for pair in headers if pair[0] not in _OF_THE_BODY]
        self._status = message["status"]
        if self.refusal is not None:
            # The chat app answers a client that it takes to have left; ours comes instead,
            # under the same request id.
            self._is_ended = True
            return
        request = self._request
        if request is None or not request.body.stream or self._status != HTTP_OK:
            self._whole = bytearray()
            return
        named = {name for name, _ in self.headers}
        extra = [pair for pair in _EVENT_STREAM if pair[0] not in named]
        self._stream = ResponseStream(request, self._origin)
        await self._send({**message, "headers": [*self.headers, *extra]})
        await self._send_body(self._stream.begin(), more=True)

    async def _body(self, chunk: bytes, *, is_last: bool) -> None:
        if self._stream is not None:
            events = self._stream.feed(chunk) + (self._stream.end() if is_last else b"")
            if events or is_last:
                await self._send_body(events, more=not is_last)
        elif self._whole is not None:
            self._whole += chunk
            if is_last:
                await self._send_whole(bytes(self._whole))
        self._is_ended = self._is_ended or is_last

    async def _send_whole(self, body: bytes) -> None:
        if self._request is None or self._status != HTTP_OK:
            body = rename_params(body)
        else:
            try:
                body = msgspec.json.encode(whole_response(body, self._request, self._origin))
            except EngineError as error:
                self.refusal = error
                return
        await _send_json(self._send, self._status, body, headers=self.headers)

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def rename_params(body: bytes) -> bytes:
    """Return an error body of the chat route in the words of this one.

    The caller sent ``input`` and ``max_output_tokens``, never ``messages`` or ``max_tokens``.
    """
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except msgspec.DecodeError:
        return body
    for chat_name, our_name in _OUR_NAMES.items():
        if error.param is not None and error.param.startswith(chat_name):
            error.param = our_name
            error.message = error.message.replace(chat_name, our_name)
    return msgspec.json.encode(_ErrorBody(error=error))


def _chat_scope(scope: Scope) -> Scope:
    """The request as the chat app sees it: at its own path.

    The client's ``content-length`` stays, so that too much is refused before it is read.
    """
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if name != b"accept-encoding"  # what is read here must come as it is
    ]
    return {
        **scope,
        "path": CHAT_PATH,
        "raw_path": CHAT_PATH.encode(),
        "headers": headers,
        SHOWN_ROUTE: scope["path"],
    }


async def _send_json(send: Send, status: int, body: bytes, *, headers: Headers) -> None:
    described = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *described]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
