"""Reads ``multipart/form-data`` as it arrives: fields in memory, the file to a spool."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Receive, Scope

from maas.core.errors import InvalidRequest, PayloadTooLarge, RequestTimedOut
from maas.gateway.relay.http import header
from maas.store.blobs import Blobs, Incoming

_MAX_FIELD_BYTES = 64 * 1024
_MAX_FIELDS = 32
_MAX_HEADER_BYTES = 8 * 1024
_BUFFER_BYTES = 1 << 20
# Of a form beside its file: fields, headers, boundaries.
_MAX_FRAME_BYTES = 1 << 20

InThread = Callable[[Callable[[], None]], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """Limits of a form.

    Attributes:
        max_file_bytes: Of the file.
        piece_timeout_s: Seconds between two pieces.
        total_timeout_s: Seconds for all of it.
    """

    max_file_bytes: int
    piece_timeout_s: float
    total_timeout_s: float


@dataclass
class Form:
    """A form that was read.

    Attributes:
        fields: All but the file, by name.
        filename: Of the file, as the client calls it.
        incoming: The file's bytes; none where there was none.
    """

    fields: dict[str, str] = field(default_factory=dict[str, str])
    filename: str = ""
    incoming: Incoming | None = None

    def discard(self) -> None:
        """Forget the file."""
        if self.incoming is not None:
            self.incoming.discard()


class _Reader:
    """The parser's callbacks. Bytes of the file are held until ``pending`` is written."""

    def __init__(self, file_field: str, blobs: Blobs, limits: Limits) -> None:
        self.form = Form()
        self.pending: list[bytes] = []
        self.num_pending = 0
        self.is_complete = False
        self._file_field = file_field
        self._blobs = blobs
        self._limits = limits
        self._header = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._data = b""
        self._num_file_bytes = 0
        self._is_file = False
        self._num_header_bytes = 0
        self._has_file = False

    def on_part_begin(self) -> None:
        self._headers, self._data, self._is_file = {}, b"", False
        self._num_header_bytes = 0

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._check_header(end - start)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header(end - start)

    def on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._is_file = self._name == self._file_field
        if not self._is_file:
            return
        if self._has_file:
            raise InvalidRequest(f"{self._file_field!r} is there twice", param=self._file_field)
        self.form.filename = options.get(b"filename", b"").decode(errors="replace")
        self._has_file = True

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._num_file_bytes += end - start
            if self._num_file_bytes > self._limits.max_file_bytes:
                raise _too_large(self._limits, self._file_field)
            self.pending.append(data[start:end])
            self.num_pending += end - start
            return
        self._data += data[start:end]
        if len(self._data) > _MAX_FIELD_BYTES:
            raise PayloadTooLarge(f"the field {self._name[:64]!r} is too long", close=True)

    def on_part_end(self) -> None:
        if self._is_file:
            return
        if self._name in self.form.fields:
            raise InvalidRequest(f"{self._name!r} is there twice", param=self._name)
        if len(self.form.fields) >= _MAX_FIELDS:
            raise InvalidRequest(f"more than {_MAX_FIELDS} fields")
        try:
            self.form.fields[self._name] = self._data.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{self._name!r} is not UTF-8", param=self._name) from error

    def on_end(self) -> None:
        self.is_complete = True

    def flush(self) -> None:
        """Write what is pending; blocks."""
        data, self.pending, self.num_pending = b"".join(self.pending), [], 0
        if self._has_file and self.form.incoming is None:
            self.form.incoming = self._blobs.begin()
        if self.form.incoming is not None and data:
            self.form.incoming.write(data)

    def _check_header(self, num_bytes: int) -> None:
        self._num_header_bytes += num_bytes
        if self._num_header_bytes > _MAX_HEADER_BYTES:
            raise InvalidRequest("a part's headers are too long", close=True)


async def read_form(
    scope: Scope,
    receive: Receive,
    *,
    file_field: str,
    blobs: Blobs,
    limits: Limits,
    in_thread: InThread,
) -> Form:
    """Read a form; its file goes to the disk as it comes.

    Args:
        scope: Of the request.
        receive: Of the request.
        file_field: Name of the field that is a file.
        blobs: Where it is spooled.
        limits: Of the form.
        in_thread: Does what may block.

    Raises:
        InvalidRequest: It is no such form, or the client left half way.
        PayloadTooLarge: The file or a field is over its limit.
        RequestTimedOut: It came too slowly.
        DiskFull: There is no room for it.
    """
    declared = header(scope, b"content-length")
    if declared.isdigit() and int(declared) > limits.max_file_bytes + _MAX_FRAME_BYTES:
        raise _too_large(limits, file_field)
    if header(scope, b"content-encoding") not in (b"", b"identity"):
        raise InvalidRequest("compressed bodies are not accepted", close=True)
    reader = _Reader(file_field, blobs, limits)
    parser = MultipartParser(_boundary(scope), callbacks=_callbacks(reader))
    try:
        async with asyncio.timeout(limits.total_timeout_s):
            await _feed(parser, reader, receive, limits, in_thread)
        await in_thread(reader.flush)
    except BaseException as error:
        reader.form.discard()
        if isinstance(error, TimeoutError):
            raise RequestTimedOut("the file came too slowly", close=True) from error
        if isinstance(error, MultipartParseError):
            raise InvalidRequest(f"the form cannot be read: {error}", close=True) from error
        raise
    if not reader.is_complete:
        reader.form.discard()
        raise InvalidRequest("the form ends before its last boundary", close=True)
    return reader.form


async def _feed(
    parser: MultipartParser,
    reader: _Reader,
    receive: Receive,
    limits: Limits,
    in_thread: InThread,
) -> None:
    num_bytes = 0
    while True:
        async with asyncio.timeout(limits.piece_timeout_s):
            message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequest("the client left before its request was complete")
        body = message.get("body", b"")
        num_bytes += len(body)
        if num_bytes > limits.max_file_bytes + _MAX_FRAME_BYTES:
            raise PayloadTooLarge("the form is too long", close=True)
        if body:
            parser.write(body)
        if reader.num_pending >= _BUFFER_BYTES:
            await in_thread(reader.flush)
        if not message.get("more_body", False):
            return


def _too_large(limits: Limits, file_field: str) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the file is over {limits.max_file_bytes} bytes; send it in parts (/v1/uploads)"
        if file_field == "file"
        else f"the part is over {limits.max_file_bytes} bytes",
        param=file_field,
        close=True,
    )


def _boundary(scope: Scope) -> bytes:
    kind, options = parse_options_header(header(scope, b"content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary or len(boundary) > 200:
        raise InvalidRequest("want multipart/form-data with a boundary", close=True)
    return boundary


def _callbacks(reader: _Reader) -> Any:
    names = (
        *("on_part_begin", "on_part_data", "on_part_end", "on_header_field", "on_header_value"),
        *("on_header_end", "on_headers_finished", "on_end"),
    )
    return {name: getattr(reader, name) for name in names}
