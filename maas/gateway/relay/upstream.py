"""Sends a checked request to an engine and hands its answer back; retries before the first byte."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import msgspec

from maas.core.errors import (
    CapabilityMissing,
    EngineError,
    EngineOverloaded,
    EngineUnreachable,
    InvalidRequest,
    MaasError,
    NoReplica,
    PromptTooLong,
    Unavailable,
)
from maas.core.settings import GatewaySettings
from maas.gateway.relay.engine_http import EngineResponse
from maas.gateway.relay.engine_pool import EnginePool, Origin, origin_of
from maas.gateway.relay.key_access import KeyAccess
from maas.gateway.relay.metering import Histogram, Latencies, Meter
from maas.gateway.relay.requests import EngineRequest, encode_for
from maas.gateway.relay.routing import Router
from maas.gateway.relay.snapshot import ModelEntry, Target
from maas.gateway.relay.streams import StreamFilter, Usage, usage_of
from maas.protocol.embeddings import EmbeddingRequest

MAX_ATTEMPTS = 3
MAX_MOMENTS = 256
_PATH = re.compile(r"(/[\w.@+-]+){2,}")
_MAX_MESSAGE_CHARS = 1000


@dataclass(frozen=True)
class Caller:
    """On whose behalf a request is made.

    Attributes:
        claim: Gives what it costs an id that others who compute the same have too, when it goes to
            an engine; none: it has one of its own.
    """

    project_id: str
    key_id: str
    request_id: str
    access: KeyAccess
    claim: Callable[[], Awaitable[str]] | None = None


class _Fault(msgspec.Struct):
    message: str = ""
    param: str | None = None


class _FaultBody(msgspec.Struct):
    error: _Fault | None = None
    message: str | None = None


def refusal_of(status: int, body: bytes, retry_after_s: int | None = None) -> MaasError:
    """Return our error for an engine's answer that is not a success.

    An engine's own words go on for a 4xx, as they explain the request; paths are taken out. Its
    429 is no limit of the caller's: it has no room.

    Args:
        status: Of the answer.
        body: Of the answer.
        retry_after_s: What its head said of coming again.
    """
    if status == 429:
        known = {} if retry_after_s is None else {"retry_after_s": retry_after_s}
        return EngineOverloaded("the engine has no room for one more request", **known)
    try:
        fault = msgspec.json.decode(body, type=_FaultBody)
    except msgspec.DecodeError:
        fault = _FaultBody()
    detail = fault.error or _Fault(fault.message or "")
    text = _PATH.sub("...", detail.message)[:_MAX_MESSAGE_CHARS]
    if status in {400, 413, 422}:
        too_long = "maximum context length" in text or "max_model_len" in text
        kind = PromptTooLong if too_long else InvalidRequest
        return kind(text or "the engine refused the request", param=detail.param)
    return EngineError(f"the engine answered {status}")


class EventSink(Protocol):
    """A client as the relay writes to it. Writing may not block."""

    def write(self, data: bytes) -> None:
        """Write events."""
        ...

    @property
    def write_framed(self) -> Callable[[bytes], None]:
        """What writes events that are framed already as one HTTP/1.1 chunk."""
        ...


class _Pipe:
    """What an answer's bytes pass on their way to a client, inside the callback that read them."""

    __slots__ = ("_gaps", "_moments", "_response", "_write", "_write_framed", "stream")

    def __init__(
        self,
        stream: StreamFilter,
        client: EventSink,
        response: EngineResponse,
        gaps: Histogram,
    ) -> None:
        self.stream = stream
        self._response = response
        self._gaps = gaps
        # Read off the clock for each chunk, counted many at a time.
        self._moments: list[float] = []
        self._write, self._write_framed = client.write, client.write_framed

    def take_framed(self, chunk: bytes, start: int) -> bool:
        """Hand on a framed chunk as it is, if it may; this is the way of nearly all of them."""
        if not self.stream.passes_framed(chunk, start):
            return False
        moments = self._moments
        moments.append(perf_counter())
        if len(moments) > MAX_MOMENTS:
            self.count()
        self._write_framed(chunk)
        return True

    def take(self, part: bytes) -> None:
        """Filter a part of the body and hand on what is left."""
        self._moments.append(perf_counter())
        if len(self._moments) > MAX_MOMENTS:
            self.count()
        events = self.stream.feed(part)
        if events:
            self._write(events)
        if self.stream.has_failed:
            self._response.stop_piping()

    def count(self) -> None:
        """Count the times between chunks so far."""
        self._gaps.observe_gaps(self._moments)


class EngineAnswer:
    """One engine's answer, open until ``close``. Use as an async context manager.

    Attributes:
        on_close: Called when the answer is let go.
        usage: Token counts; complete once the answer was read.
    """

    def __init__(
        self, response: EngineResponse, first: bytes, target: Target, request: EngineRequest
    ) -> None:
        self.target = target
        self.on_close: Callable[[], None] = _nothing
        self.usage: Usage | None = None
        self._stream: StreamFilter | None = None
        self._response = response
        self._first = first
        self._request = request

    @property
    def num_events(self) -> int:
        """Events passed to the client so far; near the number of tokens."""
        return self._stream.num_events if self._stream is not None else 0

    async def body(self) -> bytes:
        """Return the whole answer of a request that is not streamed.

        Raises:
            EngineUnreachable: The engine died half way.
        """
        try:
            rest = await self._response.read() if not self._first else b""
        except OSError as error:
            raise EngineUnreachable("the engine stopped answering") from error
        body = self._first + rest
        self.usage = usage_of(body)
        return body

    async def events(
        self, *, shown_name: str, latencies: Latencies, last: float
    ) -> AsyncIterator[bytes]:
        """Yield the events of a streamed answer as the client should see them.

        Args:
            shown_name: The model as the client named it.
            latencies: Where the time between chunks is counted.
            last: ``perf_counter`` of the first byte.

        Raises:
            EngineUnreachable: The engine died, or stopped without saying that it was done.
            EngineError: The engine reported an error.
        """
        stream = self._filter(shown_name)
        observe = latencies.chunk.observe
        chunk = self._first
        try:
            while chunk:
                events = stream.feed(chunk)
                if events:
                    yield events
                if stream.has_failed:
                    break
                chunk = await self._response.readany()
                now = perf_counter()
                observe(now - last)
                last = now
        except OSError as error:
            self._check_end(stream, error)
        finally:
            self.usage = stream.usage
        self._check_end(stream)

    async def pipe(
        self,
        client: EventSink,
        *,
        shown_name: str,
        latencies: Latencies,
    ) -> None:
        """Write what ``events`` would yield, each part in the very callback that read it.

        Args:
            client: Takes events.
            shown_name: The model as the client named it.
            latencies: Where the time between chunks is counted.

        Raises:
            EngineUnreachable: The engine died, or stopped without saying that it was done.
            EngineError: The engine reported an error.
        """
        pipe = _Pipe(self._filter(shown_name), client, self._response, latencies.chunk)
        try:
            pipe.take(self._first)
            if not pipe.stream.has_failed:
                await self._response.pipe_to(pipe.take, pipe.take_framed)
        except OSError as error:
            self._check_end(pipe.stream, error)
        finally:
            pipe.count()
            self.usage = pipe.stream.usage
        self._check_end(pipe.stream)

    def set_paused(self, is_paused: bool) -> None:
        """Stop or go on reading from the engine."""
        self._response.set_paused(is_paused)

    def _filter(self, shown_name: str) -> StreamFilter:
        engine_model = self.target.engine_model
        rename = None
        if engine_model != shown_name:
            old, new = msgspec.json.encode(engine_model), msgspec.json.encode(shown_name)
            rename = (b'"model":' + old, b'"model":' + new)
        self._stream = StreamFilter(
            self._request.wants_usage,
            rename,
            ends_with_done=self.target.capabilities.done_sentinel,
        )
        return self._stream

    @staticmethod
    def _check_end(stream: StreamFilter, error: OSError | None = None) -> None:
        if stream.has_failed:
            raise EngineError("the engine failed in the middle of its answer") from error
        # An engine may drop the connection once it has said that it was done.
        if not stream.is_complete:
            raise EngineUnreachable("the engine stopped in the middle of its answer") from error

    def close(self) -> None:
        """Let go; an answer that was not read to its end is aborted at the engine."""
        self.on_close()
        self._response.close()


def _nothing() -> None:
    """Stand for what has nothing to do on close."""


class Upstream:
    """Engines behind one pooled client.

    Args:
        settings: Timeouts and the size of the pool.
        router: Chooses replicas.
        meter: Counts retries.
    """

    def __init__(self, settings: GatewaySettings, router: Router, meter: Meter) -> None:
        self._settings = settings
        self._router = router
        self._meter = meter
        self._pool: EnginePool | None = None

    async def start(self) -> None:
        """Open the pool."""
        self._pool = EnginePool(
            connect_timeout_s=self._settings.connect_timeout_s,
            idle_timeout_s=self._settings.idle_timeout_s,
            max_connections=self._settings.max_pool_connections,
        )

    async def stop(self) -> None:
        """Close the pool."""
        if self._pool is not None:
            self._pool.stop()

    def targets_for(self, entry: ModelEntry, request: EngineRequest) -> list[Target]:
        """Return the ready replicas that can do what is asked.

        Raises:
            CapabilityMissing: None of those there are can; the message names what is missing.
            NoReplica: There is none.
        """
        if not entry.targets:
            lacking = "no engine holds it yet" if entry.is_adapter else "no replica is ready"
            raise NoReplica(f"the model {entry.name!r} is known but {lacking}; try again shortly")
        able = [
            target
            for target in entry.targets
            if all(getattr(target.capabilities, need) for need in request.needs)
        ]
        if able:
            return able
        for need in request.needs:
            if not any(getattr(target.capabilities, need) for target in entry.targets):
                raise CapabilityMissing(
                    f"the model {entry.name!r} does not offer {need}: its engine cannot do it",
                    param=need,
                )
        raise CapabilityMissing(
            f"no replica of {entry.name!r} offers {', '.join(request.needs)} together"
        )

    async def open(self, entry: ModelEntry, request: EngineRequest, caller: Caller) -> EngineAnswer:
        """Send a request to the best replica, and to another one if that fails at once.

        Raises:
            CapabilityMissing: No engine of this model can do it.
            NoReplica: None is ready.
            InvalidRequest: The engine refused it.
            EngineOverloaded: Every replica that was tried failed, and one for want of room.
        """
        targets = self.targets_for(entry, request)
        prefix = b""
        if len(targets) > 1:
            # One adapter's requests go to one replica: there it is in the batch already, and each
            # replica has fewer of them to swap. Its prefixes are cached there too.
            prefix = entry.root.encode() if entry.is_adapter else request.prefix
        failures: dict[str, EngineError | EngineOverloaded] = {}
        while True:
            target = self._router.choose(targets, prefix=prefix, tried=failures)
            lease = self._router.hold(target.replica.id, request.num_tokens_estimate)
            try:
                answer = await self._ask(target, request, caller)
                answer.on_close = lease
                return answer
            except BaseException as error:
                lease()
                if not isinstance(error, (EngineError, EngineOverloaded)):
                    raise
                self._router.suspect(target.replica.id)
                failures[target.replica.id] = error
                if len(failures) == min(MAX_ATTEMPTS, len(targets)):
                    raise _given_up(entry.name, list(failures.values())) from error
                self._meter.num_retries += 1

    def _silent(self) -> Unavailable:
        """Return the error for an engine that took a request and says nothing.

        Not one to try elsewhere: the engine may still be computing it.
        """
        seconds = self._settings.idle_timeout_s
        return Unavailable(f"the engine was silent for {seconds:.0f} s; try again, or stream")

    async def _ask(self, target: Target, request: EngineRequest, caller: Caller) -> EngineAnswer:
        if self._pool is None:
            raise RuntimeError("start() was not called")
        origin = origin_of(target.replica.url)
        try:
            response = await self._pool.post(origin, _encode(origin, target, request, caller))
            try:
                if response.status != 200:
                    body = await response.read()
                    raise refusal_of(response.status, body, response.retry_after_s)
                # With the first bytes in hand, another replica can still be asked if this one died.
                first = await response.readany() if request.is_stream else await response.read()
                if not first:
                    raise EngineUnreachable("the engine answered nothing")
            except BaseException:
                response.close()
                raise
        except TimeoutError as error:
            raise self._silent() from error
        except OSError as error:
            raise EngineUnreachable("the engine does not answer") from error
        return EngineAnswer(response, first, target, request)


def _given_up(name: str, failures: Sequence[EngineError | EngineOverloaded]) -> Unavailable:
    """Return the error for a request that no replica took."""
    full = [error for error in failures if isinstance(error, EngineOverloaded)]
    if not full:
        return NoReplica(f"the model {name!r} is not answering: {failures[-1].message}; try again")
    waits = [error.context["retry_after_s"] for error in full if "retry_after_s" in error.context]
    known = {"retry_after_s": min(waits)} if waits else {}
    return EngineOverloaded(f"the model {name!r} is overloaded; try again later", **known)


def _encode(origin: Origin, target: Target, request: EngineRequest, caller: Caller) -> bytes:
    """Return the whole request, head and body, as one piece."""
    salt = b""
    if target.capabilities.cache_salt and not isinstance(request.body, EmbeddingRequest):
        salt = b',"cache_salt":' + msgspec.json.encode(caller.project_id)
    body = encode_for(
        request,
        engine_model=target.engine_model,
        extra=salt,
        capabilities=target.capabilities,
    )
    head = (
        f"POST {origin.base_path}{request.path} HTTP/1.1\r\nHost: {origin.authority}\r\n"
        f"Content-Type: application/json\r\nX-Request-Id: {caller.request_id}\r\n"
        f"Content-Length: {len(body)}\r\n"
    )
    if target.authorization:
        head += f"Authorization: {target.authorization}\r\n"
    return f"{head}\r\n".encode("latin-1") + body
