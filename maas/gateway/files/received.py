"""What came in before the control plane is asked, and what stands for it there."""

import asyncio
import json
from dataclasses import dataclass

from starlette.types import Message, Receive, Scope

from maas.store.blobs import BlobFacts

_STATE_KEY = "maas.received"
_OF_FORM = frozenset({b"content-type", b"content-length", b"transfer-encoding"})


@dataclass(frozen=True)
class Received:
    """Bytes that are stored: what a route finds in place of a form, or beside a body.

    Attributes:
        object_id: Id that the file or part will have.
        blob: Its bytes.
        filename: As the client calls it.
        fields: Of the form, but for the file.
    """

    object_id: str
    blob: BlobFacts
    filename: str
    fields: dict[str, str]

    @property
    def body(self) -> bytes:
        """The body that stands for the form: the same form has the same."""
        return json.dumps(
            {
                "fields": dict(sorted(self.fields.items())),
                "filename": self.filename,
                "sha256": self.blob.sha256,
                "size_bytes": self.blob.size_bytes,
            }
        ).encode()


def received_of(scope: Scope) -> Received | None:
    """Return what came in with a request; none where nothing did."""
    found = scope.get("state", {}).get(_STATE_KEY)
    return found if isinstance(found, Received) else None


def scope_with(scope: Scope, received: Received | None) -> Scope:
    """Return a request's scope, as that of a JSON body and of what came in."""
    headers = [pair for pair in scope["headers"] if pair[0] not in _OF_FORM]
    return {
        **scope,
        "headers": [*headers, (b"content-type", b"application/json")],
        "state": {**scope.get("state", {}), _STATE_KEY: received},
    }


def receive_of(body: bytes) -> Receive:
    """Return what hands out a body that was read."""
    is_sent = False

    async def receive() -> Message:
        nonlocal is_sent
        if is_sent:
            await asyncio.Event().wait()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
