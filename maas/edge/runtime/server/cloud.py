"""The gateway, asked for what this device does not answer; its bytes are passed on as they come."""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator

import aiohttp
import msgspec
from aiohttp import web

from maas.core.errors import (
    AuthenticationFailed,
    EngineUnreachable,
    InvalidRequest,
    MalformedBody,
)
from maas.protocol.errors import encode_error
from maas.protocol.sse import EVENT_END, data_event

log = logging.getLogger(__name__)

ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
SERVED_BY = "x-maas-served-by"
MAX_ANSWER_BYTES = 32 << 20
# What stands in front of a gateway says so when there is none.
_OUTAGES = frozenset({502, 503, 504})
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=600)
# The time to read is for each single byte: a head has one for all of it.
_MAX_HEAD_S = 600.0
# An answer that is read whole may take so long, and longer by what came of it.
_PATIENCE_S = 60.0
_MIN_BYTES_PER_S = 1024
# Of the answer's headers these are for the client; all others are between gateway and device.
_PASSED = ("content-type", "retry-after", "retry-after-ms", "x-request-id", "x-maas-cost")
_STREAM = "text/event-stream"


class Cloud:
    """What answers beside this device.

    Args:
        session: For HTTP.
        url: The gateway's.
        key: This device's.

    Attributes:
        model: What it is asked for, as the last heartbeat said; none: nothing.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session = session
        self._url = url
        self._key = key
        self.model: str | None = None

    @contextlib.asynccontextmanager
    async def ask(
        self, path: str, body: bytes, *, once: str = ""
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, and nothing of its headers; leaving the block gives it up.

        Args:
            path: The route.
            body: Of the request; its model is replaced.
            once: The same for all times that one request is sent: it is charged once.

        Raises:
            EngineUnreachable: No answer came, or it broke off inside the block.
            AuthenticationFailed: The key is refused: the device was retired.
            InvalidRequest: The body is none.
        """
        data = with_model(body, self.model or "")
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
        }
        if once:
            # With the body, as another model makes another request of it.
            headers["Idempotency-Key"] = hashlib.sha256(once.encode() + b"\0" + data).hexdigest()
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(_MAX_HEAD_S):
                    answer = await stack.enter_async_context(
                        self._session.post(
                            self._url + path,
                            data=data,
                            headers=headers,
                            timeout=_TIMEOUT,
                            allow_redirects=False,
                        )
                    )
                if 300 <= answer.status < 400:
                    raise EngineUnreachable(f"the gateway answered {answer.status}: it moved")
                if answer.status == 401:
                    # Of this device's key, of which its client knows nothing.
                    raise AuthenticationFailed(
                        "the gateway refuses this device's key: it was retired, or enrolled anew; "
                        "maas-edge leave, then maas-edge enrol"
                    )
                yield answer
        except (aiohttp.ClientError, TimeoutError) as error:
            why = str(error) or "its answer does not come in time"
            raise EngineUnreachable(f"the gateway cannot be reached: {why}") from error

    async def relay(
        self, request: web.Request, body: bytes, *, passes_outages_on: bool
    ) -> web.StreamResponse:
        """Answer a request of this device with what the gateway answers.

        Args:
            request: The client's.
            body: Its body.
            passes_outages_on: Whether the client is told of 502, 503 and 504.

        Raises:
            EngineUnreachable: There is no answer, and nothing was sent to the client.
            AuthenticationFailed: Likewise, as this device's key is refused.
        """
        async with self.ask(request.path, body) as answer:
            if answer.status in _OUTAGES and not passes_outages_on:
                raise EngineUnreachable(f"the gateway answered {answer.status}")
            headers = {name: answer.headers[name] for name in _PASSED if name in answer.headers}
            headers[SERVED_BY] = "cloud"
            if not headers.get("content-type", _STREAM).startswith(_STREAM):
                whole = await read_whole(answer, MAX_ANSWER_BYTES)
                if whole is None:
                    raise EngineUnreachable(
                        f"the gateway's answer has over {MAX_ANSWER_BYTES} bytes"
                    )
                return web.Response(body=whole, status=answer.status, headers=headers)
            chunks = _chunks_of(answer)
            # Whatever fails before there is a byte can still be answered otherwise.
            first = await anext(chunks, b"")
            response = web.StreamResponse(status=answer.status, headers=headers)
            try:
                await response.prepare(request)
                await _pass_on(request, response, first, chunks)
            except ConnectionResetError:
                log.info("a client left while the cloud answered it")
            return response


async def read_whole(answer: aiohttp.ClientResponse, max_bytes: int) -> bytes | None:
    """Return a whole answer; none where it is longer.

    Raises:
        TimeoutError: It is all too slow.
    """
    data = bytearray()
    due = asyncio.get_running_loop().time() + _PATIENCE_S
    async with asyncio.timeout_at(due) as limit:
        async for chunk in answer.content.iter_any():
            data += chunk
            if len(data) > max_bytes:
                return None
            limit.reschedule(due + len(data) / _MIN_BYTES_PER_S)
    return bytes(data)


def with_model(body: bytes, model: str) -> bytes:
    """Return a request's body with another model, all else as it was.

    Raises:
        MalformedBody: It is not JSON.
        InvalidRequest: It is no object.
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body is no JSON object: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(f"the body is not valid JSON: {error}") from error
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


async def _chunks_of(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.content.iter_any():
            yield chunk
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineUnreachable(f"the cloud's answer broke off: {error}") from error


async def _pass_on(
    request: web.Request, response: web.StreamResponse, first: bytes, chunks: AsyncIterator[bytes]
) -> None:
    """Send what comes; say so where it breaks off, as nobody else can go on from there."""
    end = first
    await response.write(first)
    try:
        async for chunk in chunks:
            await response.write(chunk)
            end = (end + chunk)[-len(EVENT_END) :]
    except EngineUnreachable as error:
        if end.endswith(EVENT_END):
            body = encode_error(error.message, kind="server_error", code=error.code)
            await response.write(data_event(body))
        elif request.transport is not None:
            # In the middle of an event nothing can be said.
            request.transport.close()
