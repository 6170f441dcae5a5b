"""The relay: a request's life from the client's bytes to the engine's and back.

key -> project · parse once · name -> model · check length · choose replica · stream bytes ·
count. See docs/architecture.md.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

import msgspec
from starlette.types import Receive, Scope, Send

from maas.core.errors import EngineError, MaasError, ModelNotFound
from maas.core.settings import GatewaySettings
from maas.gateway.direct import DirectClient, direct_client
from maas.gateway.errors import error_body, send_error
from maas.gateway.facts import ModelFacts
from maas.gateway.relay.access import AccessLog, AccessRecord
from maas.gateway.relay.admission import Admission, Admitted
from maas.gateway.relay.http import (
    ClientLeft,
    bearer_of,
    read_body,
    request_id_of,
    while_client_listens,
)
from maas.gateway.relay.key_access import KeyAccess
from maas.gateway.relay.length import check_length
from maas.gateway.relay.metering import Latencies, Meter
from maas.gateway.relay.requests import (
    EngineRequest,
    parse_chat,
    parse_completion,
    parse_embedding,
)
from maas.gateway.relay.snapshot import ModelEntry, SnapshotReader
from maas.gateway.relay.upstream import Caller, EngineAnswer, Upstream
from maas.protocol.sse import data_event
from maas.store.keys import check_key

# Scope key: the route as the client knows it, where an app in front of the relay translates.
SHOWN_ROUTE = "maas.route"
# Scope key: ``Caller.claim``, where this request may have come before.
CLAIM = "maas.claim"
CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is left to see it

Parser = Callable[[bytes, Callable[[str], ModelFacts], int], EngineRequest]
PARSERS: Mapping[str, Parser] = {
    "/v1/chat/completions": parse_chat,
    "/v1/completions": parse_completion,
    "/v1/embeddings": parse_embedding,
}


@dataclass
class Exchange:
    """One request and its answer while they are open.

    Attributes:
        entry: The model asked.
        request: What was checked.
        answer: The engine's answer.
        latencies: Where its times are counted.
        first_byte: ``perf_counter`` of the engine's first byte.
    """

    entry: ModelEntry
    request: EngineRequest
    answer: EngineAnswer
    latencies: Latencies
    shown_name: str
    first_byte: float
    admitted: Admitted

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that tell the caller how near its limits are."""
        return self.admitted.rate_headers()

    def cost_header(self) -> list[tuple[bytes, bytes]]:
        """Return the header with what the answer costs, once its usage is known."""
        return self.admitted.cost_header()

    def events(self) -> AsyncIterator[bytes]:
        """Yield a streamed answer's events.

        Raises:
            EngineError: The engine died or failed half way.
        """
        return self.answer.events(
            shown_name=self.shown_name, latencies=self.latencies, last=self.first_byte
        )

    async def pipe(self, client: DirectClient) -> None:
        """Write a streamed answer's events to a client as they are read.

        Raises:
            EngineError: The engine died or failed half way.
        """
        answer = self.answer
        client.on_writable = lambda is_writable: answer.set_paused(not is_writable)
        try:
            await answer.pipe(
                client,
                shown_name=self.shown_name,
                latencies=self.latencies,
            )
        finally:
            client.on_writable = None

    async def body(self) -> bytes:
        """Return an answer that is not streamed, under the name that was asked for.

        Raises:
            EngineUnreachable: The engine died half way.
        """
        body = await self.answer.body()
        self.admitted.take_answer(body, self.answer.usage)
        engine_model = self.answer.target.engine_model
        if engine_model == self.shown_name:
            return body
        old, new = msgspec.json.encode(engine_model), msgspec.json.encode(self.shown_name)
        return body.replace(b'"model":' + old, b'"model":' + new, 1)


class Relay:
    """The data plane.

    Args:
        settings: Limits and timeouts.
        snapshots: What to route by.
        upstream: Sends.
        meter: Counts.
        access: The access log.
        admission: Reserves and settles.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        snapshots: SnapshotReader,
        *,
        upstream: Upstream,
        meter: Meter,
        access: AccessLog,
        admission: Admission,
    ) -> None:
        self._settings = settings
        self._snapshots = snapshots
        self._upstream = upstream
        self._meter = meter
        self._access = access
        self._admission = admission

    def authenticate(self, scope: Scope, request_id: str) -> Caller:
        """Return who is asking a model.

        Raises:
            AuthenticationFailed: No key, an unknown key, a revoked key, or not accepted from here.
            PermissionDenied: The key is not for inference, or not for this route.
        """
        access = self.identify(scope)
        access.check_inference()
        return Caller(access.key.project_id, access.key.id, request_id, access, scope.get(CLAIM))

    def identify(self, scope: Scope) -> KeyAccess:
        """Return the key that was presented and what it may do.

        Raises:
            AuthenticationFailed: No key, an unknown key, a revoked key, or not accepted from here.
            PermissionDenied: The key is not for this route, or its owner is no more.
        """
        snapshot = self._snapshots.current
        key = check_key(bearer_of(scope), snapshot.keys)
        access = snapshot.access[key.id]
        access.check(scope, scope.get(SHOWN_ROUTE) or scope["path"])
        return access

    def parse(
        self, parser: Parser, raw: bytes, project_id: str
    ) -> tuple[ModelEntry, EngineRequest]:
        """Check a body; return it with the model it asks for.

        Args:
            parser: Of the route.
            raw: The body.
            project_id: Who asks; a tuned model is there for its own project only.

        Raises:
            InvalidRequest: Something in it is refused.
            ModelNotFound: There is no such model.
        """
        found: list[ModelEntry] = []

        def facts_of(name: str) -> ModelFacts:
            found.append(self._snapshots.current.resolve(name, project_id))
            return found[0].facts

        request = parser(raw, facts_of, self._settings.max_json_depth)
        return found[0], request

    async def parse_anew(
        self, parser: Parser, raw: bytes, project_id: str
    ) -> tuple[ModelEntry, EngineRequest]:
        """Parse as ``parse`` does; a name that is not known is looked up in the store once more.

        Whoever heard that a job has succeeded may ask its model at once, at every gateway.
        """
        try:
            return self.parse(parser, raw, project_id)
        except ModelNotFound:
            await self._snapshots.look_again()
            return self.parse(parser, raw, project_id)

    @asynccontextmanager
    async def exchange(
        self, entry: ModelEntry, request: EngineRequest, caller: Caller, record: AccessRecord
    ) -> AsyncGenerator[Exchange]:
        """Ask an engine and hold its answer open; counts tokens and times when it is over.

        Leaving early, or being cancelled, aborts the request at the engine.

        Args:
            entry: The model.
            request: As checked by ``parse``.
            caller: On whose behalf.
            record: Of the access log; what is learned is written into it.

        Raises:
            InvalidRequest: The prompt is too long, or the engine refused it.
            IdempotencyKeyReused: Another request came with its key.
            LimitExceeded: It would pass a limit of its caller.
            CapabilityMissing: No engine of this model can do it.
            NoReplica: None is ready, or none answers.
            EngineOverloaded: None has room.
        """
        started = perf_counter()
        shown_name, record.model = entry.name, entry.root
        await check_length(request, entry)
        terms = self._snapshots.current.terms.terms_of(caller.key_id, entry.root)
        charge_id = await caller.claim() if caller.claim else ""
        admitted = await self._admission.enter(
            terms, entry, request, request_id=caller.request_id, charge_id=charge_id
        )
        try:
            answer = await self._upstream.open(entry, request, caller)
            first_byte = perf_counter()
            replica_id = record.replica = answer.target.replica.id
            latencies = self._meter.latencies_of(entry.root, replica_id)
            latencies.ttft.observe(first_byte - started)
            record.ttft_s = first_byte - started
            admitted.follow(lambda: answer.num_events)
            try:
                yield Exchange(entry, request, answer, latencies, shown_name, first_byte, admitted)
            finally:
                answer.close()
                latencies.duration.observe(perf_counter() - started)
                admitted.take_usage(answer.usage)
                self._count(entry, answer, record)
        except asyncio.CancelledError:
            # A charge that another may make is made for an answer only: whoever asks again pays.
            admitted.is_given_up = caller.claim is None
            raise
        finally:
            self._admission.leave(admitted)

    def _count(self, entry: ModelEntry, answer: EngineAnswer, record: AccessRecord) -> None:
        """Count what was delivered: the engine's numbers, else the events that went out."""
        usage = answer.usage
        cached = 0
        if usage is None:
            completion, prompt = answer.num_events, 0
        else:
            completion, prompt = usage.completion_tokens or 0, usage.prompt_tokens
            if usage.prompt_tokens_details is not None:
                cached = usage.prompt_tokens_details.cached_tokens or 0
        record.num_completion_tokens = completion
        record.num_prompt_tokens, record.num_cached_tokens = prompt, cached
        for kind, count in (("prompt", prompt), ("cached", cached), ("completion", completion)):
            self._meter.count_tokens(entry.root, record.replica, kind, count)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request on a relayed route."""
        started = perf_counter()
        route = str(scope["path"])
        shown_route = str(scope.get(SHOWN_ROUTE, route))
        request_id = request_id_of(scope)
        record = AccessRecord(
            time=time.time(),
            request_id=request_id,
            route=shown_route,
            model="",
            status=0,
            duration_s=0.0,
        )
        try:
            caller = self.authenticate(scope, request_id)
            record.key_id = caller.key_id
            client = direct_client(scope, send)
            raw = await read_body(
                scope,
                receive,
                max_bytes=self._settings.max_body_bytes,
                timeout_s=self._settings.body_timeout_s,
                client=client,
            )
            entry, request = await self.parse_anew(PARSERS[route], raw, caller.project_id)
            caller.access.check_model(entry.name, entry.root)
            with while_client_listens(receive, client):
                async with self.exchange(entry, request, caller, record) as exchange:
                    await self._answer(exchange, send, client, record)
        except ClientLeft:
            record.status = CLIENT_CLOSED_REQUEST
            self._meter.num_aborts += 1
        except MaasError as error:
            record.status = await send_error(send, error, request_id)
            record.error = error.message
        self.finish(record, started)

    async def _answer(
        self, exchange: Exchange, send: Send, client: DirectClient | None, record: AccessRecord
    ) -> None:
        if exchange.request.is_stream:
            await self._stream(exchange, send, client, record)
            return
        body = await exchange.body()
        headers = [
            (b"content-type", b"application/json"),
            (b"x-request-id", record.request_id.encode()),
            *exchange.headers(),
            *exchange.cost_header(),
        ]
        record.status = 200
        if client is not None:
            client.respond(200, headers, body)
            return
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(
        self, exchange: Exchange, send: Send, client: DirectClient | None, record: AccessRecord
    ) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            (b"x-request-id", record.request_id.encode()),
            *exchange.headers(),
        ]
        record.status = 200
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        last = b""
        try:
            if client is not None:
                await exchange.pipe(client)
            else:
                async for events in exchange.events():
                    await send({"type": "http.response.body", "body": events, "more_body": True})
        except EngineError as error:
            # Said in the stream, and no [DONE]: the client must not take this for a whole answer.
            record.error = error.message
            last = data_event(error_body(error))
        await send({"type": "http.response.body", "body": last})

    def finish(self, record: AccessRecord, started: float) -> None:
        """Count and log a request that was answered."""
        record.duration_s = perf_counter() - started
        self._meter.count_request(record)
        self._access.add(record)
