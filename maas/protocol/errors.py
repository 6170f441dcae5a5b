"""The error body of the API: ``{"error": {message, type, param, code}}``."""

import msgspec


class ErrorDetail(msgspec.Struct):
    """What went wrong; ``code`` is always a string."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """The whole body."""

    error: ErrorDetail


def encode_error(message: str, *, kind: str, code: str, param: str | None = None) -> bytes:
    """Return the JSON body of an error."""
    return msgspec.json.encode(ErrorBody(ErrorDetail(message, kind, param, code)))
