"""How a request with an ``Idempotency-Key`` is known again, and how its answer is held and kept."""

import asyncio
import hashlib
import logging
import re
from dataclasses import dataclass, field

from sqlalchemy.orm import Session
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas.core.clock import Clock
from maas.core.errors import InvalidRequest
from maas.gateway.relay.http import header, request_id_of
from maas.store.idempotency import IdempotentRequest, StoredAnswer, find_answer, keep_answer
from maas.store.records import ApiKey
from maas.store.secrets import Sealing

log = logging.getLogger(__name__)

IDEMPOTENCY_KEY = b"idempotency-key"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_REQUEST_ID = b"x-request-id"
# Of an answer's headers, those that are part of it and not of one delivery.
_REPLAYED = (b"idempotent-replayed", b"true")
_KEPT = (b"content-type", b"x-maas-cost")


@dataclass
class HeldAnswer:
    """An answer held back until what it says has happened."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    parts: list[bytes] = field(default_factory=list[bytes])
    _is_over: bool = False

    async def take(self, message: Message) -> None:
        """Take a message that the app sends."""
        if message["type"] == "http.response.start":
            if self.status:
                # Of an app that failed while it answered: what it had said stands.
                self._is_over = True
            else:
                self.status, self.headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body" and not self._is_over:
            self.parts.append(message.get("body", b""))
            self._is_over = not message.get("more_body", False)

    @property
    def is_success(self) -> bool:
        """Whether what was asked for has been done."""
        return 200 <= self.status < 300

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(self.parts)

    def again(self) -> "HeldAnswer":
        """Return it as it is given to whoever comes after the first."""
        kept = [(name, value) for name, value in self.headers if name.lower() in _KEPT]
        length = (b"content-length", str(len(self.body)).encode())
        return HeldAnswer(self.status, [*kept, length, _REPLAYED], [self.body])

    async def deliver(self, send: Send) -> None:
        """Send it."""
        start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        await send(start)
        await send({"type": "http.response.body", "body": self.body})


def named(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """Give a request one id, for its answer, for the log and for the audit log."""
    request_id = request_id_of(scope).encode("ascii")
    others = [pair for pair in scope["headers"] if pair[0] != _REQUEST_ID]

    async def send_named(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message.get("headers", ()) if pair[0] != _REQUEST_ID]
            message = {**message, "headers": [*headers, (_REQUEST_ID, request_id)]}
        await send(message)

    return {**scope, "headers": [*others, (_REQUEST_ID, request_id)]}, send_named


def body_given(body: bytes, receive: Receive | None = None) -> Receive:
    """Return what an app receives whose body has been read already.

    Args:
        body: All of it.
        receive: Says when the client leaves; none: the app never hears of it.
    """
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    never = asyncio.Event()

    async def receive_given() -> Message:
        if messages:
            return messages.pop()
        if receive is not None:
            return await receive()
        await never.wait()
        return {"type": "http.disconnect"}

    return receive_given


async def ask(app: ASGIApp, scope: Scope, body: bytes, answer: HeldAnswer) -> None:
    """Have an app answer a request to its end, also where its client leaves."""
    try:
        await app(scope, body_given(body), answer.take)
    except Exception:
        # An app may answer and raise all the same, for the log.
        if not answer.status:
            raise
        log.exception("%s %s failed", scope["method"], scope["path"])


def key_given(scope: Scope) -> str:
    """Return the ``Idempotency-Key`` of a request; empty where it has none.

    Raises:
        InvalidRequest: It is no key.
    """
    given = header(scope, IDEMPOTENCY_KEY).decode("latin-1")
    if given and not _KEY.fullmatch(given):
        raise InvalidRequest(
            "Idempotency-Key: want 1 to 255 printable characters without spaces",
            param="Idempotency-Key",
        )
    return given


def request_of(scope: Scope, body: bytes, given: str, key: ApiKey) -> IdempotentRequest:
    """Return how a request is known again.

    Args:
        scope: Of the request.
        body: Its body.
        given: Its ``Idempotency-Key``.
        key: Who asks.
    """
    asked = b"\0".join(
        (
            # The whole of it: the column below holds its start.
            scope["path"].encode(errors="surrogatepass"),
            scope.get("query_string", b""),
            header(scope, b"openai-organization"),
            body,
        )
    )
    return IdempotentRequest(
        project_id=key.project_id,
        key=given,
        api_key_id=key.id,
        method=scope["method"],
        path=scope["path"][:255],
        body_hash=hashlib.sha256(asked).hexdigest(),
    )


@dataclass(frozen=True)
class FirstAnswers:
    """Keeps first answers in the store.

    Attributes:
        clock: Says when they are a day old.
        sealing: Of their bodies: one may hold a new key, or what a model said.
    """

    clock: Clock
    sealing: Sealing

    def find(self, session: Session, request: IdempotentRequest) -> HeldAnswer | None:
        """Return the first answer to a request; none where it has none.

        Raises:
            IdempotencyKeyReused: The key came with another request.
        """
        stored = find_answer(session, request, self.clock.now())
        return None if stored is None else self._replayed(stored)

    def sealed(self, answer: HeldAnswer) -> StoredAnswer:
        """Return an answer as it is kept: sealing takes its time, and may be done beforehand.

        Raises:
            UnicodeDecodeError: It is no text.
        """
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in answer.headers
            if name.lower() in _KEPT
        }
        body = self.sealing.seal(answer.body.decode()).encode()
        return StoredAnswer(answer.status, headers, body)

    def keep(
        self, session: Session, request: IdempotentRequest, given: StoredAnswer
    ) -> HeldAnswer | None:
        """Write an answer down; return the first one where that is another's."""
        kept = keep_answer(session, request, given, self.clock.now())
        return None if kept == given else self._replayed(kept)

    def _replayed(self, stored: StoredAnswer) -> HeldAnswer:
        body = self.sealing.open(stored.body.decode()).encode()
        headers = [(name.encode(), value.encode()) for name, value in stored.headers.items()]
        return HeldAnswer(stored.status, headers, [body]).again()
