"""The raw ASGI parts: headers, bodies within limits, request ids, the client leaving."""

import asyncio
import itertools
import os
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager

from starlette.types import Receive, Scope

from maas.core.errors import InvalidRequest, PayloadTooLarge, RequestTimedOut
from maas.gateway.direct import DirectClient

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
# A request's id is this process and a number: it must be its own, and need not be unguessable.
_PROCESS = os.urandom(10).hex()
_numbers = itertools.count()


def header(scope: Scope, name: bytes) -> bytes:
    """Return a header's value; the name in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return value
    return b""


def request_id_of(scope: Scope) -> str:
    """Return the caller's request id if it is sane, a new one otherwise."""
    given = header(scope, b"x-request-id")
    if given and _REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    return f"req-{_PROCESS}{next(_numbers):012x}"


def bearer_of(scope: Scope) -> str:
    """Return the key that was presented, or an empty text."""
    value = header(scope, b"authorization")
    scheme, _, key = value.partition(b" ")
    return key.strip().decode("latin-1") if scheme.lower() == b"bearer" else ""


async def read_body(
    scope: Scope,
    receive: Receive,
    *,
    max_bytes: int,
    timeout_s: float,
    client: DirectClient | None = None,
) -> bytes:
    """Read the whole body.

    Args:
        scope: Of the request.
        receive: Of the request.
        max_bytes: Of the body.
        timeout_s: For all of it.
        client: Tells whether all of it is here already, and no timer is needed.

    Raises:
        RequestTimedOut: It did not arrive in time.
        PayloadTooLarge: It is over the limit; the rest is not read.
        InvalidRequest: It is compressed, or the client left.
    """
    if header(scope, b"content-encoding") not in (b"", b"identity"):
        raise InvalidRequest("compressed bodies are not accepted; send plain JSON", close=True)
    declared = header(scope, b"content-length")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    if client is not None and client.has_whole_body:
        return await _read_all(receive, max_bytes=max_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            return await _read_all(receive, max_bytes=max_bytes)
    except TimeoutError as error:
        raise RequestTimedOut(
            f"the body did not arrive within {timeout_s:.0f} s", close=True
        ) from error


async def _read_all(receive: Receive, *, max_bytes: int) -> bytes:
    message = await receive()
    parts: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise InvalidRequest("the client left before its request was complete")
        part = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is over {max_bytes} bytes", close=True)


class ClientLeft(Exception):
    """The client closed its connection while we worked for it."""


@contextmanager
def while_client_listens(receive: Receive, client: DirectClient | None) -> Generator[None]:
    """Cancel the work inside as soon as the client closes its connection.

    Args:
        receive: Tells when the client leaves, where ``client`` cannot.
        client: The client's connection, where nothing is in between; watching it costs no task.

    Raises:
        ClientLeft: It did.
    """
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("needs a running task")
    has_left = False

    def leave() -> None:
        nonlocal has_left
        has_left = True
        task.cancel()

    unwatch = _watch(receive, leave) if client is None else _watch_direct(client, leave)
    try:
        yield
    except asyncio.CancelledError:
        # Ours to swallow only if we asked for it and nobody else did.
        if has_left and task.uncancel() == 0:
            raise ClientLeft from None
        raise
    finally:
        unwatch()


def _watch(receive: Receive, leave: Callable[[], None]) -> Callable[[], None]:
    watch: asyncio.Task[object] = asyncio.ensure_future(receive())  # type: ignore[arg-type]

    def on_done(_: "asyncio.Task[object]") -> None:
        if not watch.cancelled():
            leave()

    def unwatch() -> None:
        watch.remove_done_callback(on_done)
        watch.cancel()

    watch.add_done_callback(on_done)
    return unwatch


def _watch_direct(client: DirectClient, leave: Callable[[], None]) -> Callable[[], None]:
    if client.is_lost:
        raise ClientLeft
    client.on_lost = leave

    def unwatch() -> None:
        client.on_lost = None

    return unwatch
