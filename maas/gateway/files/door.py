"""In front of the routes that take files: who asks is known before a byte of the body is read.

The bytes go to the storage as they come. What goes on to the control plane in place of the form
is a small JSON body that says what came, by its hash: so a request with an ``Idempotency-Key`` is
known again by the content it brings, and a change is one transaction as everywhere.
"""

import asyncio
import json
import re
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas.core.errors import InvalidRequest, MaasError
from maas.core.ids import new_id
from maas.core.settings import GatewaySettings
from maas.gateway.authority import check_may_upload
from maas.gateway.errors import send_error
from maas.gateway.files.multipart import Form, Limits, read_form
from maas.gateway.relay.app import Relay
from maas.gateway.relay.http import request_id_of
from maas.store.blobs import BlobFacts, Blobs
from maas.store.files import blob_key_of, new_file_id

FILES_PATH = "/v1/files"
_PARTS_PATH = re.compile(r"/v1/uploads/([A-Za-z0-9-]{1,64})/parts")
STATE_KEY = "maas.received"


@dataclass(frozen=True)
class Received:
    """A form whose file is stored: what a route finds in place of the body.

    Attributes:
        object_id: Id that the file or part will have.
        blob: Its bytes.
    """

    object_id: str
    filename: str
    blob: BlobFacts
    fields: dict[str, str]


def takes_file(scope: Scope) -> bool:
    """Say whether a request brings a file."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    return scope["path"] == FILES_PATH or _PARTS_PATH.fullmatch(scope["path"]) is not None


class FileDoor:
    """Takes a file in, then asks the control plane.

    Args:
        app: The control plane.
        relay: Knows keys.
        blobs: Where bytes go.
        settings: Limits.
    """

    def __init__(
        self, app: ASGIApp, *, relay: Relay, blobs: Blobs, settings: GatewaySettings
    ) -> None:
        self._app = app
        self._relay = relay
        self._blobs = blobs
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            check_may_upload(self._relay.identify(scope))
            received = await self._receive(scope, receive)
        except MaasError as error:
            await send_error(send, error, request_id_of(scope))
            return
        is_kept = False

        async def watch(message: Message) -> None:
            nonlocal is_kept
            if message["type"] == "http.response.start":
                # An answer of a request before this one: its file is that one's.
                is_again = any(name == b"idempotent-replayed" for name, _ in message["headers"])
                is_kept = 200 <= message["status"] < 300 and not is_again
            await send(message)

        try:
            await self._app(_scope_with(scope, received), _body_of(received), watch)
        finally:
            if not is_kept:
                await asyncio.to_thread(self._blobs.delete, received.blob.key)

    async def _receive(self, scope: Scope, receive: Receive) -> Received:
        part = _PARTS_PATH.fullmatch(scope["path"])
        form = await read_form(
            scope,
            receive,
            file_field="data" if part else "file",
            blobs=self._blobs,
            limits=Limits(
                max_file_bytes=self._settings.max_part_bytes
                if part
                else self._settings.max_file_bytes,
                piece_timeout_s=self._settings.body_timeout_s,
                total_timeout_s=self._settings.upload_timeout_s,
            ),
        )
        try:
            return await asyncio.to_thread(self._store, form, part.group(1) if part else None)
        except BaseException:
            form.discard()
            raise

    def _store(self, form: Form, upload_id: str | None) -> Received:
        field = "file" if upload_id is None else "data"
        if form.incoming is None:
            raise InvalidRequest(f"the form has no field {field!r}", param=field)
        if form.incoming.size_bytes == 0:
            raise InvalidRequest("the file is empty", param=field)
        if upload_id is None:
            object_id = new_file_id()
            key = blob_key_of(object_id)
        else:
            object_id = new_id("part")
            key = f"uploads/{upload_id}/{object_id}"
        facts = self._blobs.put(key, form.incoming)
        return Received(object_id, form.filename, facts, form.fields)


def _scope_with(scope: Scope, received: Received) -> Scope:
    hidden = {b"content-type", b"content-length", b"transfer-encoding"}
    headers = [pair for pair in scope["headers"] if pair[0] not in hidden]
    return {
        **scope,
        "headers": [*headers, (b"content-type", b"application/json")],
        "state": {**scope.get("state", {}), STATE_KEY: received},
    }


def _body_of(received: Received) -> Receive:
    """Return the body that stands for the form: the same form has the same."""
    body = json.dumps(
        {
            "fields": dict(sorted(received.fields.items())),
            "filename": received.filename,
            "sha256": received.blob.sha256,
            "size_bytes": received.blob.size_bytes,
        }
    ).encode()
    is_sent = False

    async def receive() -> Message:
        nonlocal is_sent
        if is_sent:
            await asyncio.Event().wait()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
