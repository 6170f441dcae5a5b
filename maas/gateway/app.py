"""The gateway put together: which path goes to the data plane, which to the control plane."""

from dataclasses import dataclass
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from maas.core.ids import new_id
from maas.core.settings import GatewaySettings
from maas.gateway.adapters.door import ADAPTERS_PATH, AdapterDoor
from maas.gateway.control import Workshop, control_plane
from maas.gateway.control_writes import ControlWrites
from maas.gateway.devices.door import DeviceDoor
from maas.gateway.errors import error_body, status_of
from maas.gateway.files.door import FileDoor, takes_file
from maas.gateway.idempotency import FirstAnswers
from maas.gateway.idempotent_inference import IdempotentInference
from maas.gateway.relay.access import AccessLog
from maas.gateway.relay.admission import Admission
from maas.gateway.relay.app import PARSERS, Relay
from maas.gateway.relay.metering import GatewayCollector, LedgerCollector, Meter
from maas.gateway.relay.routing import Router
from maas.gateway.relay.snapshot import Connect, Describe, SnapshotReader, Sources
from maas.gateway.relay.upstream import Upstream
from maas.gateway.responses.routes import ResponsesApp
from maas.gateway.responses.stream import live_origin
from maas.gateway.uploads.joining import Joiner
from maas.gateway.webhook_sender import WebhookSender
from maas.ledger.ledger import Ledger
from maas.store.database import Database
from maas.store.device_keys import ENROL_PATH, HEARTBEAT_PATH
from maas.store.secrets import Sealing
from maas.store.tenancy import Tenancy
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


@dataclass(frozen=True)
class _DataPlane:
    """What answers inference, and what everything else knows keys and models by."""

    settings: GatewaySettings
    snapshots: SnapshotReader
    upstream: Upstream
    access: AccessLog
    admission: Admission
    relay: Relay
    registry: CollectorRegistry


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
    snapshots = SnapshotReader(
        sources,
        describe=describe,
        connect=connect,
        interval_s=settings.snapshot_interval_s,
        gateway_id=new_id("gw"),
    )
    plane = _data_plane(settings, snapshots, ledger, access_log)
    webhooks = WebhookRepository(tenancy.database, tenancy.clock, sealing.seal)
    answers = FirstAnswers(tenancy.clock, sealing)
    control = _guarded_control_plane(
        plane, tenancy, workshop, ledger=ledger, webhooks=webhooks, answers=answers
    )
    return Gateway(
        asgi=_dispatcher(plane, control, workshop, tenancy.database, answers),
        metrics_asgi=_metrics_app(plane.registry),
        snapshots=snapshots,
        upstream=plane.upstream,
        access=plane.access,
        ledger=ledger,
        admission=plane.admission,
        webhooks=WebhookSender(
            webhooks,
            ledger.clock,
            unseal=sealing.open,
            allows_private=settings.webhooks_allow_private,
        ),
    )


def _data_plane(
    settings: GatewaySettings, snapshots: SnapshotReader, ledger: Ledger, access_log: Path
) -> _DataPlane:
    meter, router = Meter(), Router()
    upstream = Upstream(settings, router, meter)
    access = AccessLog(access_log)
    admission = Admission(ledger.spender, ledger.clock, num_gateways=lambda: snapshots.num_gateways)
    relay = Relay(
        settings,
        snapshots,
        upstream=upstream,
        meter=meter,
        access=access,
        admission=admission,
    )
    registry = CollectorRegistry()
    registry.register(GatewayCollector(meter, router, lambda: snapshots.current))
    registry.register(LedgerCollector(admission, ledger.spender))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return _DataPlane(settings, snapshots, upstream, access, admission, relay, registry)


def _guarded_control_plane(
    plane: _DataPlane,
    tenancy: Tenancy,
    workshop: Workshop,
    *,
    ledger: Ledger,
    webhooks: WebhookRepository,
    answers: FirstAnswers,
) -> ControlWrites:
    """Return the control plane with what makes each change happen once in front of it."""
    app = control_plane(
        plane.relay,
        plane.snapshots,
        tenancy,
        settings=plane.settings,
        ledger=ledger,
        webhooks=webhooks,
        workshop=workshop,
    )
    return ControlWrites(
        app,
        relay=plane.relay,
        snapshots=plane.snapshots,
        database=tenancy.database,
        answers=answers,
        settings=plane.settings,
    )


def _dispatcher(
    plane: _DataPlane,
    control: ASGIApp,
    workshop: Workshop,
    database: Database,
    answers: FirstAnswers,
) -> Dispatcher:
    settings, relay, blobs = plane.settings, plane.relay, workshop.blobs
    responses = ResponsesApp(
        relay,
        render_error=lambda error: (status_of(error)[0], error_body(error)),
        origin=live_origin(),
        max_body_bytes=settings.max_body_bytes,
    )
    door = DeviceDoor(workshop.fleet, relay=relay, snapshots=plane.snapshots, settings=settings)
    answering: dict[str, ASGIApp] = {**dict.fromkeys(PARSERS, relay), "/v1/responses": responses}
    once = IdempotentInference(
        answering, relay=relay, database=database, answers=answers, settings=settings
    )
    relayed: dict[str, ASGIApp] = {
        **dict.fromkeys(answering, once),
        ENROL_PATH: door.enrol,
        HEARTBEAT_PATH: door.heartbeat,
    }
    joiner = Joiner(blobs, workshop.uploads)
    return Dispatcher(
        relayed,
        control,
        files_in=FileDoor(control, relay=relay, blobs=blobs, joiner=joiner, settings=settings),
        adapters_in=AdapterDoor(
            control, relay=relay, brought=workshop.brought_adapters, settings=settings
        ),
    )
