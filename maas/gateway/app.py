"""The gateway put together: which path goes to the data plane, which to the control plane."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from maas.core.errors import InvalidRequest, MaasError, MalformedBody, NotFound, UnknownField
from maas.core.ids import new_id
from maas.core.settings import GatewaySettings
from maas.gateway.adapters import routes as adapters
from maas.gateway.adapters.door import ADAPTERS_PATH, AdapterDoor
from maas.gateway.adapters.service import BroughtAdapters
from maas.gateway.bundles import routes as bundles
from maas.gateway.control_writes import ControlWrites
from maas.gateway.devices import routes as devices
from maas.gateway.devices.door import DeviceDoor
from maas.gateway.devices.service import FleetService
from maas.gateway.document import DEVICE_ROUTES, RELAYED, document_of
from maas.gateway.errors import error_body, error_headers, status_of
from maas.gateway.exports import routes as exports
from maas.gateway.exports.service import Exports
from maas.gateway.files import routes as files
from maas.gateway.files.door import FileDoor, takes_file
from maas.gateway.fine_tuning import routes as fine_tuning
from maas.gateway.fine_tuning.service import FineTuning
from maas.gateway.health import routes as health
from maas.gateway.models import routes as models
from maas.gateway.organization import routes as organization
from maas.gateway.relay.access import AccessLog
from maas.gateway.relay.admission import Admission
from maas.gateway.relay.app import PARSERS, Relay
from maas.gateway.relay.http import request_id_of
from maas.gateway.relay.metering import GatewayCollector, LedgerCollector, Meter
from maas.gateway.relay.routing import Router
from maas.gateway.relay.snapshot import Connect, Describe, SnapshotReader, Sources
from maas.gateway.relay.upstream import Upstream
from maas.gateway.responses.routes import ResponsesApp
from maas.gateway.responses.stream import live_origin
from maas.gateway.uploads import routes as uploads
from maas.gateway.uploads.joining import Joiner
from maas.gateway.webhook_sender import WebhookSender
from maas.ledger.ledger import Ledger
from maas.store.blobs import Blobs
from maas.store.bundles import BundleRepository
from maas.store.device_keys import ENROL_PATH, HEARTBEAT_PATH
from maas.store.files import FileRepository
from maas.store.fleet import Fleet
from maas.store.secrets import Sealing
from maas.store.tenancy import Tenancy
from maas.store.uploads import UploadRepository
from maas.store.webhooks import WebhookRepository


@dataclass(frozen=True)
class Gateway:
    """A gateway ready to be served.

    Attributes:
        asgi: The API.
        metrics_asgi: Prometheus metrics, for a port of their own.
    """

    asgi: ASGIApp
    metrics_asgi: ASGIApp
    snapshots: SnapshotReader
    upstream: Upstream
    access: AccessLog
    ledger: Ledger
    admission: Admission
    webhooks: WebhookSender

    async def start(self) -> None:
        """Open the pool and the ledger, and read the first snapshot."""
        await self.upstream.start()
        await self.ledger.start()
        await self.webhooks.start()
        await self.access.start()
        await self.snapshots.start()

    async def stop(self) -> None:
        """Let go of everything."""
        await self.snapshots.stop()
        await self.upstream.stop()
        await self.webhooks.stop()
        await self.admission.stop()
        await self.ledger.stop()
        await self.access.stop()


class Dispatcher:
    """Sends relayed routes straight to the relay and everything else to FastAPI."""

    def __init__(
        self,
        relayed: dict[str, ASGIApp],
        control: ASGIApp,
        *,
        files_in: ASGIApp,
        adapters_in: ASGIApp,
    ) -> None:
        self._relayed = relayed
        self._control = control
        self._files_in = files_in
        self._adapters_in = adapters_in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["method"] == "POST":
            app = self._relayed.get(scope["path"])
            if app is not None:
                await app(scope, receive, send)
                return
            if takes_file(scope):
                await self._files_in(scope, receive, send)
                return
            if scope["path"] == ADAPTERS_PATH:
                await self._adapters_in(scope, receive, send)
                return
        await self._control(scope, receive, send)


def _answer(error: MaasError, request: Request, status: int | None = None) -> Response:
    headers = error_headers(error, request_id_of(request.scope))
    return Response(
        error_body(error),
        status_code=status or status_of(error)[0],
        headers={name.decode(): value.decode() for name, value in headers},
    )


def _refusal_of(first: Mapping[str, Any]) -> InvalidRequest:
    """Return our error for the first thing that FastAPI found wrong."""
    if first["type"] == "json_invalid":
        return MalformedBody("the body is not JSON")
    # The first part says whether it was body, query or path.
    path = ".".join(str(part) for part in first["loc"][1:]) or None
    if first["type"] == "extra_forbidden":
        return UnknownField(f"unknown field {path!r}", param=path)
    return InvalidRequest(f"{path or 'the body'}: {first['msg']}", param=path)


async def _on_error(request: Request, error: Exception) -> Response:
    if isinstance(error, MaasError):
        return _answer(error, request)
    if isinstance(error, HTTPException) and error.status_code == 405:
        refused = InvalidRequest(f"{request.method} is not allowed on {request.url.path}")
        return _answer(refused, request, 405)
    if isinstance(error, HTTPException) and error.status_code == 400:
        return _answer(MalformedBody("the body cannot be read; want JSON"), request)
    if isinstance(error, HTTPException):
        return _answer(NotFound(f"no route {request.url.path}"), request, error.status_code)
    if isinstance(error, RequestValidationError):
        return _answer(_refusal_of(error.errors()[0]), request)
    return _answer(MaasError("unexpected"), request)


@dataclass(frozen=True)
class Workshop:
    """What files, fine-tuning, exports and devices work with."""

    blobs: Blobs
    files: FileRepository
    uploads: UploadRepository
    fine_tuning: FineTuning
    brought_adapters: BroughtAdapters
    exports: Exports
    bundles: BundleRepository
    fleet: Fleet


def _control_plane(  # noqa: PLR0913 - what the routes work with
    relay: Relay,
    snapshots: SnapshotReader,
    tenancy: Tenancy,
    *,
    settings: GatewaySettings,
    ledger: Ledger,
    webhooks: WebhookRepository,
    workshop: Workshop,
) -> FastAPI:
    app = FastAPI(
        title="maas",
        version="0.1.0",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    app.state.relay = relay
    app.state.snapshots = snapshots
    app.state.tenancy = tenancy
    app.state.spent = ledger.usage.spent_this_month
    app.state.usage = ledger.usage
    app.state.webhooks = webhooks
    app.state.tuned_models = workshop.brought_adapters.registry.tuned_models
    app.state.settings = settings
    app.state.blobs = workshop.blobs
    app.state.files = workshop.files
    app.state.uploads = workshop.uploads
    app.state.fine_tuning = workshop.fine_tuning
    app.state.brought_adapters = workshop.brought_adapters
    app.state.exports = workshop.exports
    app.state.bundles = workshop.bundles
    app.state.fleet = FleetService(workshop.fleet, snapshots)
    made = (files, uploads, fine_tuning, exports, bundles, devices)
    for part in (health, models, adapters, organization, *made):
        app.include_router(part.router)
    for kind in (MaasError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _on_error)
    for path in (*RELAYED, *DEVICE_ROUTES):
        # A wrong method on a relayed route is a 405, not a 404.
        app.add_api_route(path, _wrong_method, methods=["POST"], include_in_schema=False)
    app.openapi = document_of(app)  # type: ignore[method-assign]
    return app


async def _wrong_method() -> None:
    """Stand for a route that the relay answers; never reached."""


def _metrics_app(registry: CollectorRegistry) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        is_metrics = scope["type"] == "http" and scope["path"] == "/metrics"
        answer = (
            Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
            if is_metrics
            else Response("metrics are at /metrics\n", status_code=404)
        )
        await answer(scope, receive, send)

    return app


def create_gateway(  # noqa: PLR0913 - what a gateway is made of
    settings: GatewaySettings,
    sources: Sources,
    ledger: Ledger,
    tenancy: Tenancy,
    workshop: Workshop,
    *,
    describe: Describe,
    connect: Connect,
    sealing: Sealing,
    access_log: Path,
) -> Gateway:
    """Put a gateway together.

    Args:
        settings: Limits and timeouts.
        sources: What to route by.
        ledger: What things cost, and this gateway's purse.
        tenancy: Who there is and what each may use.
        workshop: Files and fine-tuning.
        describe: Facts of a model id.
        connect: Capabilities and authorization of a deployment's engine.
        sealing: Of answers that are kept for repeated requests.
        access_log: File of the access log.
    """
    meter, router = Meter(), Router()
    upstream = Upstream(settings, router, meter)
    access = AccessLog(access_log)
    snapshots = SnapshotReader(
        sources,
        describe=describe,
        connect=connect,
        interval_s=settings.snapshot_interval_s,
        gateway_id=new_id("gw"),
    )
    admission = Admission(ledger.spender, ledger.clock, num_gateways=lambda: snapshots.num_gateways)
    relay = Relay(
        settings,
        snapshots,
        upstream=upstream,
        meter=meter,
        access=access,
        admission=admission,
    )
    responses = ResponsesApp(
        relay,
        render_error=lambda error: (status_of(error)[0], error_body(error)),
        origin=live_origin(),
        max_body_bytes=settings.max_body_bytes,
    )
    registry = CollectorRegistry()
    registry.register(GatewayCollector(meter, router, lambda: snapshots.current))
    registry.register(LedgerCollector(admission, ledger.spender))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    door = DeviceDoor(workshop.fleet, relay=relay, snapshots=snapshots, settings=settings)
    relayed: dict[str, ASGIApp] = {
        **dict.fromkeys(PARSERS, relay),
        "/v1/responses": responses,
        ENROL_PATH: door.enrol,
        HEARTBEAT_PATH: door.heartbeat,
    }
    webhooks = WebhookRepository(tenancy.database, tenancy.clock, sealing.seal)
    control = ControlWrites(
        _control_plane(
            relay,
            snapshots,
            tenancy,
            settings=settings,
            ledger=ledger,
            webhooks=webhooks,
            workshop=workshop,
        ),
        relay=relay,
        snapshots=snapshots,
        database=tenancy.database,
        clock=tenancy.clock,
        sealing=sealing,
        settings=settings,
    )
    return Gateway(
        asgi=Dispatcher(
            relayed,
            control,
            files_in=FileDoor(
                control,
                relay=relay,
                blobs=workshop.blobs,
                joiner=Joiner(workshop.blobs, workshop.uploads),
                settings=settings,
            ),
            adapters_in=AdapterDoor(
                control, relay=relay, brought=workshop.brought_adapters, settings=settings
            ),
        ),
        metrics_asgi=_metrics_app(registry),
        snapshots=snapshots,
        upstream=upstream,
        access=access,
        ledger=ledger,
        admission=admission,
        webhooks=WebhookSender(
            webhooks,
            ledger.clock,
            unseal=sealing.open,
            allows_private=settings.webhooks_allow_private,
        ),
    )
