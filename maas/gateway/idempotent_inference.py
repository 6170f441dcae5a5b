"""In front of the relay: with an ``Idempotency-Key`` a request is answered once, and charged once.

The key is written down before the request is sent to an engine, with the moment it came first.
Key and moment name the charge, and the journal takes a charge once: so wherever a gateway dies,
and however many of them compute an answer, it is paid for once. The first answer that is kept is
the one that everybody gets. Whoever comes while it is computed here waits for it, and an answer is
computed to its end when its client leaves: it will come again.

Streams pass: what was sent of one cannot be taken back.
"""

import asyncio
import logging
import time
from time import perf_counter

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from maas.core.errors import AnswerNotKept, MaasError
from maas.core.settings import GatewaySettings
from maas.gateway.direct import CLIENT
from maas.gateway.errors import error_body, send_error, status_of
from maas.gateway.idempotency import (
    IDEMPOTENCY_KEY,
    FirstAnswers,
    HeldAnswer,
    ask,
    body_given,
    key_given,
    named,
    request_of,
)
from maas.gateway.relay.access import AccessRecord
from maas.gateway.relay.app import CHARGE_ID, Relay
from maas.gateway.relay.http import header, read_body, request_id_of
from maas.ledger.entries import once_id
from maas.store.database import Database
from maas.store.idempotency import IdempotentRequest, claim, let_mend

log = logging.getLogger(__name__)

MAX_KEPT_BYTES = 2**20


class _Body(msgspec.Struct):
    stream: bool | None = None


class IdempotentInference:
    """Stands in front of an app that answers for models.

    Args:
        app: Answers one route.
        relay: Knows keys.
        database: Where answers are kept.
        answers: Keeps them.
        settings: Limits of a body.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        relay: Relay,
        database: Database,
        answers: FirstAnswers,
        settings: GatewaySettings,
    ) -> None:
        self._app = app
        self._relay = relay
        self._database = database
        self._answers = answers
        self._settings = settings
        self._running: dict[tuple[str, str], asyncio.Event] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if header(scope, IDEMPOTENCY_KEY):
            await self._answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        scope.pop(CLIENT, None)
        scope, send = named(scope, send)
        request_id = request_id_of(scope)
        record = AccessRecord(time.time(), request_id, scope["path"], "", 0, 0.0)
        try:
            caller = self._relay.authenticate(scope, request_id)
            record.key_id = caller.key_id
            given = key_given(scope)
            body = await read_body(
                scope,
                receive,
                max_bytes=self._settings.max_body_bytes,
                timeout_s=self._settings.body_timeout_s,
            )
            if _is_stream(body):
                await self._app(scope, body_given(body, receive), send)
                return
            request = request_of(scope, body, given, caller.access.key)
            answer, is_replayed = await self._answer_in_turn(request, scope, body)
        except MaasError as error:
            record.status = await send_error(send, error, request_id)
            record.error = error.message
            self._relay.finish(record, started)
            return
        if is_replayed:
            # Others are counted where they are computed.
            record.status = answer.status
            self._relay.finish(record, started)
        await answer.deliver(send)

    async def _answer_in_turn(
        self, request: IdempotentRequest, scope: Scope, body: bytes
    ) -> tuple[HeldAnswer, bool]:
        """Answer after those that came before with the same key; say whether that is a replay."""
        name = (request.project_id, request.key)
        while (running := self._running.get(name)) is not None:
            await running.wait()
        done = self._running[name] = asyncio.Event()
        try:
            found = await asyncio.to_thread(self._find_or_claim, request)
            if isinstance(found, HeldAnswer):
                return found, True
            charge_id = once_id(f"{request.project_id}\0{request.key}\0{found!r}")
            answer = HeldAnswer()
            await ask(self._app, {**scope, CHARGE_ID: charge_id}, body, answer)
            return await asyncio.to_thread(self._kept, request, answer), False
        finally:
            del self._running[name]
            done.set()

    def _find_or_claim(self, request: IdempotentRequest) -> HeldAnswer | float:
        """Return the first answer, or when the key came first where there is none yet."""
        with self._database.read() as session:
            found = self._answers.find(session, request)
        if found is not None:
            return found
        with self._database.write(bump_revision=False) as session:
            # Another gateway may have been faster.
            found = self._answers.find(session, request)
            return found or claim(session, request, self._answers.clock.now())

    def _kept(self, request: IdempotentRequest, answer: HeldAnswer) -> HeldAnswer:
        """Write down how a request ended; return what its client gets."""
        try:
            with self._database.write(bump_revision=False) as session:
                if not answer.is_success:
                    let_mend(session, request, self._answers.clock.now())
                    return answer
                fits = len(answer.body) <= MAX_KEPT_BYTES
                kept = self._answers.keep(session, request, answer if fits else _too_long(answer))
                return kept if fits else answer
        except MaasError as error:
            # It is computed and paid for: whoever still listens gets it.
            log.error("the answer to %s is not kept: %s", request.path, error.message)
            return answer


def _is_stream(body: bytes) -> bool:
    try:
        return bool(msgspec.json.decode(body, type=_Body).stream)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # refused where it is read


def _too_long(answer: HeldAnswer) -> HeldAnswer:
    """Return what is kept in place of an answer."""
    error = AnswerNotKept(
        f"this request was answered, and charged; its answer had {len(answer.body)} bytes, over "
        f"{MAX_KEPT_BYTES}, and was not kept; use a new Idempotency-Key to ask again",
        param="Idempotency-Key",
    )
    headers = [(b"content-type", b"application/json")]
    return HeldAnswer(status_of(error)[0], headers, [error_body(error)])
