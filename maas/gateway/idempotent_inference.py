"""In front of the relay: with an ``Idempotency-Key`` a request is answered once, and charged once.

The key is written down before the request is sent to an engine, with the moment it came first.
The request and that moment name the charge, and the journal takes a charge once: so wherever a
gateway dies, and however many of them compute an answer, it is paid for once. The first answer that
is kept is the one that everybody gets. Whoever comes while it is computed here gets what comes of
it, and an answer is computed to its end when its client leaves: it will come again.

Streams pass: what was sent of one cannot be taken back.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from maas.core.errors import (
    AnswerNotKept,
    EngineOverloaded,
    LimitExceeded,
    MaasError,
    StoreUnavailable,
)
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
from maas.gateway.relay.app import CLAIM, CLIENT_CLOSED_REQUEST, Relay
from maas.gateway.relay.http import (
    ClientLeft,
    header,
    read_body,
    request_id_of,
    while_client_listens,
)
from maas.ledger.entries import once_id
from maas.store.database import Database
from maas.store.idempotency import KEPT_S, IdempotentRequest, claim, reused

log = logging.getLogger(__name__)

T = TypeVar("T")
MAX_KEPT_BYTES = 2**20
MAX_KEPT_BYTES_A_DAY = 256 * 2**20
MAX_KEYS_A_DAY = 100_000
# Requests that wait for the answer of another with their key.
MAX_FOLLOWERS = 100
# Threads that wait for the store on behalf of models, and requests that wait for these.
_NUM_THREADS = 2
_MAX_WAITING = 256


class _Body(msgspec.Struct):
    stream: bool | None = None


@dataclass
class _Turn:
    """A request that is answered now, and what comes of it for those that came after it."""

    request: IdempotentRequest
    outcome: "asyncio.Future[HeldAnswer]"
    num_followers: int = 0


@dataclass
class _Room:
    """How much is kept for a project within a day, by this gateway."""

    _day: int = 0
    _num_bytes: Counter[str] = field(default_factory=Counter[str])
    _num_keys: Counter[str] = field(default_factory=Counter[str])

    def take_key(self, project_id: str, now: float) -> bool:
        """Take room for a key; say whether there was."""
        self._begin_day(now)
        self._num_keys[project_id] += 1
        return self._num_keys[project_id] <= MAX_KEYS_A_DAY

    def take_answer(self, project_id: str, size_bytes: int, now: float) -> bool:
        """Take room for an answer; say whether there was."""
        self._begin_day(now)
        taken = self._num_bytes[project_id] + size_bytes
        if size_bytes > MAX_KEPT_BYTES or taken > MAX_KEPT_BYTES_A_DAY:
            return False
        self._num_bytes[project_id] = taken
        return True

    def _begin_day(self, now: float) -> None:
        day = int(now // KEPT_S)
        if day != self._day:
            self._day, self._num_bytes, self._num_keys = day, Counter(), Counter()


class IdempotentInference:
    """Stands in front of the apps that answer for models.

    Args:
        apps: Who answers which route.
        relay: Knows keys.
        database: Where answers are kept.
        answers: Keeps them.
        settings: Limits of a body.
    """

    def __init__(
        self,
        apps: Mapping[str, ASGIApp],
        *,
        relay: Relay,
        database: Database,
        answers: FirstAnswers,
        settings: GatewaySettings,
    ) -> None:
        self._apps = apps
        self._relay = relay
        self._database = database
        self._answers = answers
        self._settings = settings
        self._turns: dict[tuple[str, str], _Turn] = {}
        self._room = _Room()
        # Of their own: a store that does not answer must not take the threads of other requests.
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="idempotency")
        self._num_waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if not header(scope, IDEMPOTENCY_KEY):
            await self._apps[scope["path"]](scope, receive, send)
            return
        started = perf_counter()
        # Its connection is no more written to past this app.
        scope.pop(CLIENT, None)
        scope, send = named(scope, send)
        request_id = request_id_of(scope)
        record = AccessRecord(time.time(), request_id, scope["path"], "", 0, 0.0)
        try:
            answer = await self._answer(scope, receive, send, record)
        except ClientLeft:
            record.status = CLIENT_CLOSED_REQUEST
        except MaasError as error:
            record.status = await send_error(send, error, request_id)
            record.error = error.message
        else:
            if answer is None:
                return
            record.status = answer.status
            await answer.deliver(send)
        self._relay.finish(record, started)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, record: AccessRecord
    ) -> HeldAnswer | None:
        """Return the answer to a request that came before; none where the app has answered it."""
        access = self._relay.authenticate(scope, record.request_id).access
        record.key_id = access.key.id
        given = key_given(scope)
        body = await read_body(
            scope,
            receive,
            max_bytes=self._settings.max_body_bytes,
            timeout_s=self._settings.body_timeout_s,
        )
        if _is_stream(body):
            await self._apps[scope["path"]](scope, body_given(body, receive), send)
            return None
        request = request_of(scope, body, given, access.key)
        turn = self._turns.get((request.project_id, request.key))
        if turn is not None:
            # Only what comes of it is waited for.
            del body
            return await self._followed(turn, request, receive)
        found, first = await self._answer_in_turn(request, scope, body)
        if found is None:
            await first.deliver(send)
        return found

    async def _followed(
        self, turn: _Turn, request: IdempotentRequest, receive: Receive
    ) -> HeldAnswer:
        """Return what comes of a request that is answered now, to one that came after it.

        Raises:
            IdempotencyKeyReused: It is another request.
            EngineOverloaded: Too many wait.
            ClientLeft: Its client did.
            MaasError: The first ended with that.
        """
        if turn.request != request:
            raise reused(request)
        if turn.num_followers >= MAX_FOLLOWERS:
            raise EngineOverloaded("too many requests wait for the answer to this Idempotency-Key")
        turn.num_followers += 1
        try:
            with while_client_listens(receive, None):
                await asyncio.wait({turn.outcome})
        finally:
            turn.num_followers -= 1
        if turn.outcome.cancelled():
            raise EngineOverloaded("the request that this one waited for was broken off; try again")
        answer = turn.outcome.result()
        return answer.again() if answer.is_success else answer

    async def _answer_in_turn(
        self, request: IdempotentRequest, scope: Scope, body: bytes
    ) -> tuple[HeldAnswer | None, HeldAnswer]:
        """Answer a request that nobody answers now; return what was found, and what it comes to."""
        outcome: asyncio.Future[HeldAnswer] = asyncio.get_running_loop().create_future()
        name = (request.project_id, request.key)
        self._turns[name] = _Turn(request, outcome)
        try:
            found = await self._in_thread(lambda: self._find(request))
            answer = found or await self._computed(request, scope, body)
        except MaasError as error:
            outcome.set_exception(error)
            # Those that follow hear of it, if there are any.
            outcome.exception()
            raise
        else:
            outcome.set_result(answer)
            return found, answer
        finally:
            del self._turns[name]
            outcome.cancel()

    async def _computed(self, request: IdempotentRequest, scope: Scope, body: bytes) -> HeldAnswer:
        async def claimed() -> str:
            if not self._room.take_key(request.project_id, self._answers.clock.now()):
                raise LimitExceeded(
                    f"this project used {MAX_KEYS_A_DAY} Idempotency-Keys here today; ask without",
                    limit="idempotency_keys",
                    is_lasting=True,
                )
            first_at = await self._in_thread(lambda: self._claim(request))
            return once_id(f"{request!r} {first_at!r}")

        answer = HeldAnswer()
        await ask(self._apps[scope["path"]], {**scope, CLAIM: claimed}, body, answer)
        # What was refused cost nothing, and may come again.
        return await self._kept(request, answer) if answer.is_success else answer

    async def _kept(self, request: IdempotentRequest, answer: HeldAnswer) -> HeldAnswer:
        """Keep an answer; return the one that its client gets, which another may have given."""
        size_bytes, now = len(answer.body), self._answers.clock.now()
        fits = self._room.take_answer(request.project_id, size_bytes, now)
        try:
            # However many wait for the store: it is computed and paid for.
            first = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._keep, request, answer if fits else _unkept(size_bytes)
            )
        except MaasError as error:
            log.error("the answer to %s is not kept: %s", request.path, error.message)
            return answer
        return first or answer

    def _find(self, request: IdempotentRequest) -> HeldAnswer | None:
        with self._database.read() as session:
            return self._answers.find(session, request)

    def _claim(self, request: IdempotentRequest) -> float:
        # What could not be sealed could not be kept: said before anything is paid for.
        self._answers.sealed(HeldAnswer())
        with self._database.write(bump_revision=False) as session:
            return claim(session, request, self._answers.clock.now())

    def _keep(self, request: IdempotentRequest, answer: HeldAnswer) -> HeldAnswer | None:
        try:
            sealed = self._answers.sealed(answer)
        except UnicodeDecodeError:
            sealed = self._answers.sealed(_unkept(len(answer.body)))
        with self._database.write(bump_revision=False) as session:
            return self._answers.keep(session, request, sealed)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Wait for the store.

        Raises:
            StoreUnavailable: It does not answer, or too many wait for it.
        """
        if self._num_waiting >= _MAX_WAITING:
            raise StoreUnavailable("too many requests with an Idempotency-Key wait for the store")
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._num_waiting -= 1


def _is_stream(body: bytes) -> bool:
    try:
        return bool(msgspec.json.decode(body, type=_Body).stream)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # refused where it is read


def _unkept(size_bytes: int) -> HeldAnswer:
    """Return what is kept in place of an answer that is too long."""
    error = AnswerNotKept(
        f"this request was answered, and charged; its answer had {size_bytes} bytes and was not "
        f"kept: at most {MAX_KEPT_BYTES} are, and {MAX_KEPT_BYTES_A_DAY} a day; use a new "
        "Idempotency-Key to ask again",
        param="Idempotency-Key",
    )
    headers = [(b"content-type", b"application/json")]
    return HeldAnswer(status_of(error)[0], headers, [error_body(error)])
