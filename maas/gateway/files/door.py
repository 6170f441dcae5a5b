"""In front of the routes that take files: who asks is known before a byte of the body is read.

The bytes go to the storage as they come. What goes on to the control plane in place of the form
is a small JSON body that says what came, by its hash: so a request with an ``Idempotency-Key`` is
known again by the content it brings, and a change is one transaction as everywhere. In the same
way the parts of an upload are joined before its completion is written down: no transaction waits
for bytes.
"""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas.core.errors import InvalidRequest, MaasError
from maas.core.ids import new_id
from maas.core.settings import GatewaySettings
from maas.gateway.authority import check_may_upload
from maas.gateway.errors import send_error
from maas.gateway.files.multipart import Form, Limits, read_form
from maas.gateway.files.received import Received, receive_of, scope_with
from maas.gateway.relay.app import Relay
from maas.gateway.relay.http import read_body, request_id_of
from maas.gateway.uploads.joining import Joiner
from maas.store.blobs import Blobs
from maas.store.files import blob_key_of, new_file_id

T = TypeVar("T")
FILES_PATH = "/v1/files"
_UPLOAD_PATH = re.compile(r"/v1/uploads/([A-Za-z0-9-]{1,64})/(parts|complete)")
# Each holds a megabyte of a file at a time; slow clients hold none.
_NUM_WRITERS, _NUM_JOINERS = 8, 2


def takes_file(scope: Scope) -> bool:
    """Say whether a request brings a file, or makes one."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    return scope["path"] == FILES_PATH or _UPLOAD_PATH.fullmatch(scope["path"]) is not None


class FileDoor:
    """Takes bytes in, then asks the control plane.

    Args:
        app: The control plane.
        relay: Knows keys.
        blobs: Where bytes go.
        joiner: Joins parts.
        settings: Limits.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        relay: Relay,
        blobs: Blobs,
        joiner: Joiner,
        settings: GatewaySettings,
    ) -> None:
        self._app = app
        self._relay = relay
        self._blobs = blobs
        self._joiner = joiner
        self._settings = settings
        # Of their own: a slow disk or storage must not hold the threads that others need.
        self._writers = ThreadPoolExecutor(_NUM_WRITERS, thread_name_prefix="files")
        self._joiners = ThreadPoolExecutor(_NUM_JOINERS, thread_name_prefix="uploads")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            access = self._relay.identify(scope)
            check_may_upload(access)
            upload = _UPLOAD_PATH.fullmatch(scope["path"])
            if upload is not None and upload.group(2) == "complete":
                body = await self._read_body(scope, receive)
                joined = partial(self._joiner.join, access.key.project_id, upload.group(1), body)
                received = await _in(self._joiners, joined)
            else:
                received = await self._take(scope, receive, upload.group(1) if upload else None)
                body = received.body
        except MaasError as error:
            await send_error(send, error, request_id_of(scope))
            return
        await self._ask(scope, body, received, send)

    async def _ask(self, scope: Scope, body: bytes, received: Received | None, send: Send) -> None:
        is_refused = False

        async def watch(message: Message) -> None:
            nonlocal is_refused
            if message["type"] == "http.response.start":
                # An answer of a request before this one: its file is that one's.
                is_again = any(name == b"idempotent-replayed" for name, _ in message["headers"])
                is_refused = not 200 <= message["status"] < 300 or is_again
            await send(message)

        try:
            await self._app(scope_with(scope, received), receive_of(body), watch)
        finally:
            # Without an answer nobody knows whether the bytes have their row by now; if they
            # have none, the sweep finds them.
            if is_refused and received is not None:
                await _in(self._writers, partial(self._blobs.delete, received.blob.key))

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        return await read_body(
            scope,
            receive,
            max_bytes=self._settings.max_body_bytes,
            timeout_s=self._settings.body_timeout_s,
        )

    async def _take(self, scope: Scope, receive: Receive, upload_id: str | None) -> Received:
        settings = self._settings
        max_bytes = settings.max_file_bytes if upload_id is None else settings.max_part_bytes
        form = await read_form(
            scope,
            receive,
            file_field="file" if upload_id is None else "data",
            blobs=self._blobs,
            limits=Limits(
                max_file_bytes=max_bytes,
                piece_timeout_s=settings.body_timeout_s,
                total_timeout_s=settings.upload_timeout_s,
            ),
            in_thread=partial(_in, self._writers),
        )
        return await _in(self._writers, partial(self._keep, form, upload_id))

    def _keep(self, form: Form, upload_id: str | None) -> Received:
        field = "file" if upload_id is None else "data"
        if form.incoming is None:
            raise InvalidRequest(f"the form has no field {field!r}", param=field)
        try:
            if form.incoming.size_bytes == 0:
                raise InvalidRequest("the file is empty", param=field)
            if upload_id is None:
                object_id = new_file_id()
                key = blob_key_of(object_id)
            else:
                object_id = new_id("part")
                key = f"uploads/{upload_id}/{object_id}"
            facts = self._blobs.put(key, form.incoming)
        except BaseException:
            form.discard()
            raise
        return Received(object_id, facts, form.filename, form.fields)


async def _in(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, work)
