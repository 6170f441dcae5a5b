"""Between the client and the bundle: what this device cannot answer goes to the cloud.

A request goes there before the bundle sees it, or after it failed on this device without a byte
having been sent. Where the cloud does not answer, it is answered here if that is possible at all,
kept for later if its client said so, and refused with the reason otherwise.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from aiohttp import web

from maas.core.errors import (
    AuthenticationFailed,
    EngineUnreachable,
    InvalidRequest,
    MaasError,
    MalformedBody,
    Unavailable,
)
from maas.edge.runtime.battery import Battery
from maas.edge.runtime.server.cloud import ROUTES, Cloud
from maas.edge.runtime.server.counters import Counters
from maas.edge.runtime.server.decision import Facts, Mode, Reason, decide, failure_of
from maas.edge.runtime.server.errors import Handler
from maas.edge.runtime.server.offline import OfflineQueue
from maas.edge.runtime.server.served import Serving

MODE_HEADER = "x-maas-cloud"
OFFLINE_HEADER = "x-maas-when-offline"
_MODES: dict[str, Mode] = {"auto": "auto", "never": "never", "always": "always"}
_RETRY_AFTER_S = 30
_NO_ANSWER = (EngineUnreachable, AuthenticationFailed)


class _Peek(msgspec.Struct):
    """What decides, of a body that is not checked yet."""

    model: str = ""
    stream: bool | None = None
    tools: list[msgspec.Raw] | None = None
    tool_choice: msgspec.Raw = msgspec.Raw(b"null")


@dataclass(frozen=True)
class _Asked:
    body: bytes
    mode: Mode
    is_queued: bool
    model: str
    is_stream: bool
    # Calls that the model writes of itself; forced ones are held by a grammar.
    has_free_tools: bool


@dataclass(frozen=True)
class Fallback:
    """Sends requests to the cloud where that is right.

    Attributes:
        serving: The bundle.
        cloud: The gateway; none: turned off.
        queue: Keeps requests for later.
        counters: Count.
        battery: Reads it; none on the mains.
        on_queued: Told that a request was kept.
        min_battery_percent: Below it the cloud answers.
    """

    serving: Serving
    cloud: Cloud | None
    queue: OfflineQueue
    counters: Counters
    battery: Callable[[], Battery | None]
    on_queued: Callable[[], None]
    min_battery_percent: float = 0.0

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request here or there."""
        if request.method != "POST" or request.path not in ROUTES:
            return await handler(request)
        self.counters.num_requests += 1
        asked = _asked(request, await request.read())
        reason = decide(self._facts(asked, None))
        unreached: EngineUnreachable | AuthenticationFailed | None = None
        if reason is not None:
            try:
                return await self._relay(request, asked, reason)
            except _NO_ANSWER as error:
                if reason.is_needed:
                    return await self._later(request, asked, reason, error)
                unreached = error
        try:
            return await handler(request)
        except MaasError as error:
            reason = decide(self._facts(asked, error))
            if reason is None or not failure_of(error):
                raise
        try:
            if unreached is not None:
                raise unreached
            return await self._relay(request, asked, reason)
        except _NO_ANSWER as error:
            return await self._later(request, asked, reason, error)

    def _facts(self, asked: _Asked, error: MaasError | None) -> Facts:
        served = self.serving.current
        return Facts(
            mode=asked.mode,
            cloud_model=self.cloud.model if self.cloud else None,
            model=asked.model,
            has_bundle=served is not None,
            is_served=served is not None and asked.model in {served.name, *served.adapters},
            needs_tool_parser=asked.has_free_tools
            and served is not None
            and not served.reads_tools,
            battery=self.battery(),
            min_battery_percent=self.min_battery_percent,
            failure=failure_of(error) if error else None,
        )

    async def _relay(
        self, request: web.Request, asked: _Asked, reason: Reason
    ) -> web.StreamResponse:
        if self.cloud is None or self.cloud.model is None:
            raise Unavailable(
                f"{reason}, and this device has none: it is turned off, or its group in the fleet "
                "has no fallback model"
            )
        keeps = asked.is_queued and not asked.is_stream
        response = await self.cloud.relay(
            request, asked.body, passes_outages_on=reason.is_needed and not keeps
        )
        self.counters.num_fallbacks += 1
        return response

    async def _later(
        self,
        request: web.Request,
        asked: _Asked,
        reason: Reason,
        error: EngineUnreachable | AuthenticationFailed,
    ) -> web.Response:
        """Keep a request that the cloud must answer and does not, or refuse it."""
        if isinstance(error, AuthenticationFailed):
            # Waiting does not mend it.
            raise Unavailable(f"this request needs the cloud: {reason}; {error.message}")
        if not asked.is_queued or asked.is_stream:
            advice = "streams are not queued" if asked.is_stream else "queues it"
            raise Unavailable(
                f"this request needs the cloud: {reason}; {error.message} "
                f"({OFFLINE_HEADER}: queue - {advice})",
                retry_after_s=_RETRY_AFTER_S,
            )
        kept = await asyncio.to_thread(self.queue.put, request.path, asked.body, str(reason))
        self.on_queued()
        body = {"object": "queued_request", "id": kept.id, "status": "queued"}
        return web.json_response(body, status=202)


def _asked(request: web.Request, body: bytes) -> _Asked:
    said = request.headers.get(MODE_HEADER, "auto")
    mode = _MODES.get(said)
    if mode is None:
        raise InvalidRequest(f"{MODE_HEADER}: want auto, never or always", param=MODE_HEADER)
    offline = request.headers.get(OFFLINE_HEADER)
    if offline not in {None, "queue"}:
        raise InvalidRequest(f"{OFFLINE_HEADER}: want queue", param=OFFLINE_HEADER)
    try:
        peek = msgspec.json.decode(body, type=_Peek)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(f"the body is not valid JSON: {error}") from error
    return _Asked(
        body=body,
        mode=mode,
        is_queued=offline is not None,
        model=peek.model,
        is_stream=bool(peek.stream),
        has_free_tools=bool(peek.tools) and bytes(peek.tool_choice) in {b"null", b'"auto"'},
    )
