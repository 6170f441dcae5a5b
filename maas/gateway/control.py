"""The control plane put together: every route but the relayed ones, and how its errors answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from maas.core.errors import InvalidRequest, MaasError, MalformedBody, NotFound, UnknownField
from maas.core.settings import GatewaySettings
from maas.gateway.adapters import routes as adapters
from maas.gateway.adapters.service import BroughtAdapters
from maas.gateway.bundles import routes as bundles
from maas.gateway.devices import routes as devices
from maas.gateway.devices.service import FleetService
from maas.gateway.document import DEVICE_ROUTES, RELAYED, document_of
from maas.gateway.errors import error_body, error_headers, status_of
from maas.gateway.exports import routes as exports
from maas.gateway.exports.service import Exports
from maas.gateway.files import routes as files
from maas.gateway.fine_tuning import routes as fine_tuning
from maas.gateway.fine_tuning.service import FineTuning
from maas.gateway.health import routes as health
from maas.gateway.models import routes as models
from maas.gateway.organization import routes as organization
from maas.gateway.relay.app import Relay
from maas.gateway.relay.http import request_id_of
from maas.gateway.relay.snapshot import SnapshotReader
from maas.gateway.uploads import routes as uploads
from maas.ledger.ledger import Ledger
from maas.store.blobs import Blobs
from maas.store.bundles import BundleRepository
from maas.store.files import FileRepository
from maas.store.fleet import Fleet
from maas.store.tenancy import Tenancy
from maas.store.uploads import UploadRepository
from maas.store.webhooks import WebhookRepository


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


def control_plane(  # noqa: PLR0913 - what the routes work with
    relay: Relay,
    snapshots: SnapshotReader,
    tenancy: Tenancy,
    *,
    settings: GatewaySettings,
    ledger: Ledger,
    webhooks: WebhookRepository,
    workshop: Workshop,
) -> FastAPI:
    """Return all routes that the relay and the doors do not answer.

    Args:
        relay: Knows keys.
        snapshots: Knows models.
        tenancy: Who there is and what each may use.
        settings: Limits and timeouts.
        ledger: What was used and spent.
        webhooks: Who is told.
        workshop: Files, fine-tuning, exports and devices.
    """
    app = FastAPI(
        title="maas",
        version="0.1.0",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    app.state.relay, app.state.snapshots = relay, snapshots
    app.state.settings, app.state.tenancy = settings, tenancy
    app.state.spent, app.state.usage = ledger.usage.spent_this_month, ledger.usage
    app.state.webhooks = webhooks
    _furnish(app, workshop)
    app.state.fleet = FleetService(workshop.fleet, snapshots)
    made = (files, uploads, fine_tuning, exports, bundles, devices)
    for part in (health, models, adapters, organization, *made):
        app.include_router(part.router)
    for kind in (MaasError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _on_error)
    for path in (*RELAYED, *DEVICE_ROUTES):
        # A wrong method on a relayed route is a 405, not a 404.
        app.add_api_route(path, _wrong_method, methods=["POST"], include_in_schema=False)
    app.openapi = document_of(app)
    return app


def _furnish(app: FastAPI, workshop: Workshop) -> None:
    """Put what the routes of files, tuning, exports and bundles ask for where they look for it."""
    app.state.tuned_models = workshop.brought_adapters.registry.tuned_models
    app.state.blobs = workshop.blobs
    app.state.files = workshop.files
    app.state.uploads = workshop.uploads
    app.state.fine_tuning = workshop.fine_tuning
    app.state.brought_adapters = workshop.brought_adapters
    app.state.exports = workshop.exports
    app.state.bundles = workshop.bundles


async def _wrong_method() -> None:
    """Stand for a route that the relay answers; never reached."""
