"""Errors as OpenAI's API answers them; statuses are chosen here and nowhere else."""

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

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_STATUSES: tuple[tuple[type[MaasError], int], ...] = (
    (InvalidRequest, 400),
    (NotFound, 404),
    (Conflict, 409),
    (LimitExceeded, 429),
    (Unavailable, 503),
)


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
