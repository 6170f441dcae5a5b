"""In front of the control plane: request ids; changes one at a time, each of them once.

With an ``Idempotency-Key`` a POST happens once: what it does and its answer are written in one
transaction, so that a crash leaves both or neither, and a repeated request gets the first answer.
Whoever comes second waits for the store's write lock and then finds the answer.

A change waits for the store in a thread. One at a time in a process loses nothing, as the store
has one writer anyway, and keeps changes from taking all threads while one of them holds the lock.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy.orm import Session
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maas.core.clock import Clock
from maas.core.errors import InvalidRequest, MaasError
from maas.core.settings import GatewaySettings
from maas.gateway.errors import send_error
from maas.gateway.relay.app import Relay
from maas.gateway.relay.http import header, read_body, request_id_of
from maas.gateway.relay.snapshot import SnapshotReader
from maas.store.database import Database
from maas.store.idempotency import IdempotentRequest, StoredAnswer, find_answer, keep_answer
from maas.store.secrets import Sealing
from maas.store.transactions import joining

log = logging.getLogger(__name__)

T = TypeVar("T")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
# Of an answer's headers, those that are part of it and not of one delivery.
_KEPT = ("content-type",)
_REQUEST_ID = b"x-request-id"


@dataclass
class _Answer:
    """An answer held back until what it says has happened."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    parts: list[bytes] = field(default_factory=list[bytes])

    async def take(self, message: Message) -> None:
        """Take a message that the app sends."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self.parts.append(message.get("body", b""))

    @property
    def is_success(self) -> bool:
        """Whether what was asked for has been done."""
        return 200 <= self.status < 300

    async def deliver(self, send: Send) -> None:
        """Send it."""
        start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        await send(start)
        await send({"type": "http.response.body", "body": b"".join(self.parts)})


def _named(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """Give a request one id, for its answer, for the log and for the audit log."""
    request_id = request_id_of(scope).encode("ascii")
    others = [pair for pair in scope["headers"] if pair[0] != _REQUEST_ID]

    async def send_named(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message.get("headers", ()) if pair[0] != _REQUEST_ID]
            message = {**message, "headers": [*headers, (_REQUEST_ID, request_id)]}
        await send(message)

    return {**scope, "headers": [*others, (_REQUEST_ID, request_id)]}, send_named


class ControlWrites:
    """Stands in front of the control plane.

    Args:
        app: The control plane.
        relay: Knows keys.
        snapshots: Read anew after a change, so that it holds here when it is answered.
        database: Where answers are kept.
        clock: Says when they are a day old.
        sealing: Of stored answers: one may hold a new key.
        settings: Limits of a body.
    """

    def __init__(  # noqa: PLR0913 - what it stands between
        self,
        app: ASGIApp,
        *,
        relay: Relay,
        snapshots: SnapshotReader,
        database: Database,
        clock: Clock,
        sealing: Sealing,
        settings: GatewaySettings,
    ) -> None:
        self._app = app
        self._relay = relay
        self._snapshots = snapshots
        self._database = database
        self._clock = clock
        self._sealing = sealing
        self._settings = settings
        self._turn = asyncio.Lock()
        # Of its own: other threads may all be waiting for the store.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="idempotency")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope, send = _named(scope, send)
        if scope["method"] in _READING:
            await self._app(scope, receive, send)
            return
        try:
            body = await read_body(
                scope,
                receive,
                max_bytes=self._settings.max_body_bytes,
                timeout_s=self._settings.body_timeout_s,
            )
            request = self._idempotent(scope, body)
            async with self._turn:
                answer = await self._answer(scope, body, request)
            if answer.is_success:
                await self._snapshots.refresh()
        except MaasError as error:
            await send_error(send, error, request_id_of(scope))
            return
        await answer.deliver(send)

    def _idempotent(self, scope: Scope, body: bytes) -> IdempotentRequest | None:
        """Return how a request is known again; none where it need not be.

        Raises:
            InvalidRequest: The Idempotency-Key is no key.
            AuthenticationFailed: Nobody knows who asks.
        """
        given = header(scope, b"idempotency-key").decode("latin-1")
        if scope["method"] != "POST" or not given:
            return None
        if not _KEY.fullmatch(given):
            raise InvalidRequest(
                "Idempotency-Key: want 1 to 255 printable characters without spaces",
                param="Idempotency-Key",
            )
        key = self._relay.identify(scope).key
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

    async def _answer(
        self, scope: Scope, body: bytes, request: IdempotentRequest | None
    ) -> _Answer:
        if request is None:
            return await self._ask(scope, body)
        session = await self._run(self._database.begin)
        try:
            return await self._answer_once(session, scope, body, request)
        finally:
            # Closing rolls back what was not committed.
            await asyncio.shield(self._run(session.close))

    async def _answer_once(
        self, session: Session, scope: Scope, body: bytes, request: IdempotentRequest
    ) -> _Answer:
        now = self._clock.now()
        stored = await self._run(lambda: find_answer(session, request, now))
        if stored is not None:
            return self._replayed(stored)
        with joining(session):
            answer = await self._ask(scope, body)
        # What was refused has done nothing, and may be mended and sent again.
        if answer.is_success:
            await self._run(lambda: self._keep(session, request, answer, now))
        return answer

    async def _ask(self, scope: Scope, body: bytes) -> _Answer:
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        never = asyncio.Event()

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await never.wait()
            return {"type": "http.disconnect"}

        answer = _Answer()
        try:
            await self._app(scope, receive, answer.take)
        except Exception:
            # The app answers 500 and raises all the same, for the log.
            if not answer.status:
                raise
            log.exception("%s %s failed", scope["method"], scope["path"])
        return answer

    def _keep(
        self, session: Session, request: IdempotentRequest, answer: _Answer, now: float
    ) -> None:
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in answer.headers
            if name.decode("latin-1").lower() in _KEPT
        }
        sealed = self._sealing.seal(b"".join(answer.parts).decode()).encode()
        keep_answer(session, request, StoredAnswer(answer.status, headers, sealed), now)
        session.commit()

    def _replayed(self, stored: StoredAnswer) -> _Answer:
        body = self._sealing.open(stored.body.decode()).encode()
        headers = {
            **stored.headers,
            "content-length": str(len(body)),
            "idempotent-replayed": "true",
        }
        return _Answer(
            stored.status, [(n.encode(), v.encode()) for n, v in headers.items()], [body]
        )

    async def _run(self, work: Callable[[], T]) -> T:
        def translated_work() -> T:
            with self._database.translated():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._thread, translated_work)
