"""The one place where an error of the platform becomes an HTTP answer."""

import math

from starlette.types import Send

from maas.core import errors
from maas.core.errors import MaasError
from maas.protocol.errors import encode_error

# Nearest ancestor in this table decides; the second value is OpenAI's ``type``.
STATUSES: dict[type[MaasError], tuple[int, str]] = {
    MaasError: (500, "server_error"),
    errors.InvalidRequest: (400, "invalid_request_error"),
    errors.DataRefused: (400, "invalid_request_error"),
    errors.AdapterRefused: (400, "invalid_request_error"),
    errors.BundleRefused: (400, "invalid_request_error"),
    errors.RequestTimedOut: (408, "invalid_request_error"),
    errors.PayloadTooLarge: (413, "invalid_request_error"),
    errors.AuthenticationFailed: (401, "authentication_error"),
    errors.PermissionDenied: (403, "permission_error"),
    errors.NotFound: (404, "invalid_request_error"),
    errors.Conflict: (409, "invalid_request_error"),
    # No 409: clients try those again by themselves.
    errors.AnswerNotKept: (410, "invalid_request_error"),
    errors.LimitExceeded: (429, "rate_limit_error"),
    errors.BudgetExceeded: (429, "insufficient_quota"),
    errors.Unavailable: (503, "server_error"),
    errors.EngineError: (502, "server_error"),
}
# What an operator should read and a caller must not: their messages hold paths and internals.
_PRIVATE = (
    errors.ConfigError,
    errors.WeightsError,
    errors.HostError,
    errors.EngineStartFailed,
    errors.StoreUnavailable,
    errors.StorageUnavailable,
)
_PRIVATE_MESSAGE = "the server failed; its operator finds the reason in the log, by request id"
DEFAULT_RETRY_AFTER_S = 2.0

Headers = list[tuple[bytes, bytes]]


def status_of(error: MaasError) -> tuple[int, str]:
    """Return HTTP status and OpenAI error type."""
    for kind in type(error).__mro__:
        if kind in STATUSES:
            return STATUSES[kind]
    return STATUSES[MaasError]


def error_body(error: MaasError) -> bytes:
    """Return the JSON body for an error."""
    _, kind = status_of(error)
    is_private = type(error) is MaasError or isinstance(error, _PRIVATE)
    message = _PRIVATE_MESSAGE if is_private else error.message
    return encode_error(message, kind=kind, code=error.code, param=error.context.get("param"))


def error_headers(error: MaasError, request_id: str) -> Headers:
    """Return the headers for an error; those that may be tried again say when."""
    headers = [(b"content-type", b"application/json"), (b"x-request-id", request_id.encode())]
    if isinstance(error, (errors.Unavailable, errors.LimitExceeded)):
        seconds = float(error.context.get("retry_after_s", DEFAULT_RETRY_AFTER_S))
        # Rounded up: who comes back then must not be too early.
        headers.append((b"retry-after", str(max(1, math.ceil(seconds))).encode()))
        headers.append((b"retry-after-ms", str(math.ceil(seconds * 1000)).encode()))
    if isinstance(error, errors.LimitExceeded):
        headers.append((b"x-maas-limit", str(error.context["limit"]).encode()))
        headers += error.context.get("headers", ())
        if error.context["is_lasting"]:
            # SDKs try a 429 again by themselves; this one would be the same then.
            headers.append((b"x-should-retry", b"false"))
    if isinstance(error, errors.AuthenticationFailed):
        headers.append((b"www-authenticate", b"Bearer"))
    if error.context.get("close"):
        headers.append((b"connection", b"close"))
    return headers


async def send_error(send: Send, error: MaasError, request_id: str) -> int:
    """Answer with an error and return its status."""
    status, _ = status_of(error)
    body = error_body(error)
    headers = [*error_headers(error, request_id), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    return status
