"""In front of the control plane: request ids; changes one at a time, each of them once.

With an ``Idempotency-Key`` a POST happens once: what it does and its answer are written in one
transaction, so that a crash leaves both or neither, and a repeated request gets the first answer.
Whoever comes second waits for the store's write lock and then finds the answer.

A change waits for the store in a thread. One at a time in a process loses nothing, as the store
has one writer anyway, and keeps changes from taking all threads while one of them holds the lock.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy.orm import Session
from starlette.types import ASGIApp, Receive, Scope, Send

from maas.core.errors import MaasError
from maas.core.settings import GatewaySettings
from maas.gateway.errors import send_error
from maas.gateway.idempotency import FirstAnswers, HeldAnswer, ask, key_given, named, request_of
from maas.gateway.relay.app import Relay
from maas.gateway.relay.http import read_body, request_id_of
from maas.gateway.relay.snapshot import SnapshotReader
from maas.store.database import Database
from maas.store.idempotency import IdempotentRequest
from maas.store.transactions import joining

T = TypeVar("T")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class ControlWrites:
    """Stands in front of the control plane.

    Args:
        app: The control plane.
        relay: Knows keys.
        snapshots: Read anew after a change, so that it holds here when it is answered.
        database: Where answers are kept.
        answers: Keeps them.
        settings: Limits of a body.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        relay: Relay,
        snapshots: SnapshotReader,
        database: Database,
        answers: FirstAnswers,
        settings: GatewaySettings,
    ) -> None:
        self._app = app
        self._relay = relay
        self._snapshots = snapshots
        self._database = database
        self._answers = answers
        self._settings = settings
        self._turn = asyncio.Lock()
        # Of its own: other threads may all be waiting for the store.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="idempotency")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope, send = named(scope, send)
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
        given = key_given(scope) if scope["method"] == "POST" else ""
        return request_of(scope, body, given, self._relay.identify(scope).key) if given else None

    async def _answer(
        self, scope: Scope, body: bytes, request: IdempotentRequest | None
    ) -> HeldAnswer:
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
    ) -> HeldAnswer:
        replayed = await self._run(lambda: self._answers.find(session, request))
        if replayed is not None:
            return replayed
        with joining(session):
            answer = await self._ask(scope, body)
        # What was refused has done nothing, and may be mended and sent again.
        if answer.is_success:
            await self._run(lambda: self._keep(session, request, answer))
        return answer

    async def _ask(self, scope: Scope, body: bytes) -> HeldAnswer:
        answer = HeldAnswer()
        await ask(self._app, scope, body, answer)
        return answer

    def _keep(self, session: Session, request: IdempotentRequest, answer: HeldAnswer) -> None:
        self._answers.keep(session, request, self._answers.sealed(answer))
        session.commit()

    async def _run(self, work: Callable[[], T]) -> T:
        def translated_work() -> T:
            with self._database.translated():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._thread, translated_work)
