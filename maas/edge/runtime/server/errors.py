"""Errors as OpenAI's API answers them; statuses are chosen here and nowhere else."""

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from maas.core.errors import (
    Conflict,
    InvalidRequest,
    LimitExceeded,
    MaasError,
    NotFound,
    Unavailable,
)
from maas.protocol.errors import encode_error

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_STATUSES: tuple[tuple[type[MaasError], int], ...] = (
    (InvalidRequest, 400),
    (NotFound, 404),
    (Conflict, 409),
    (LimitExceeded, 429),
    (Unavailable, 503),
)
_HAS_BEGUN = web.RequestKey("has_begun", bool)


def status_of(error: MaasError) -> int:
    """Return the status an error is answered with."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


@web.middleware
async def errors_as_bodies(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors of ours, and those of aiohttp, with the API's body."""
    try:
        return await handler(request)
    except MaasError as error:
        status = status_of(error)
        kind = "server_error" if status >= 500 else "invalid_request_error"
        param = error.context.get("param")
        body = encode_error(error.message, kind=kind, code=error.code, param=param)
        wait_s = error.context.get("retry_after_s")
        headers = {} if wait_s is None else {"Retry-After": str(wait_s)}
        return web.Response(
            body=body, status=status, headers=headers, content_type="application/json"
        )
    except web.HTTPException as error:
        body = encode_error(
            f"{request.method} {request.path}: {error.reason}",
            kind="invalid_request_error",
            code="not_found" if error.status == 404 else "http_error",
        )
        return web.Response(body=body, status=error.status, content_type="application/json")
    except ConnectionError:
        # The client left.
        raise
    except Exception:
        if request.get(_HAS_BEGUN):
            # Another head cannot follow: the connection breaks off.
            raise
        log.exception("%s %s failed", request.method, request.path)
        body = encode_error(
            "this device failed; its log says why", kind="server_error", code=MaasError.code
        )
        return web.Response(body=body, status=500, content_type="application/json")


async def note_start(request: web.Request, _: web.StreamResponse) -> None:
    """Remember that an answer has begun."""
    request[_HAS_BEGUN] = True
