"""Make, watch and cancel exports."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from maas.gateway.authority import ProjectAuthority, in_own_project
from maas.gateway.exports.schemas import (
    ExportBody,
    ExportEventObject,
    ExportObject,
    shown,
    shown_event,
)
from maas.gateway.exports.service import Exports
from maas.gateway.organization.pages import ListPage, page_of
from maas.gateway.relay.http import request_id_of
from maas.store.pages import MAX_PAGE, Window
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/exports", tags=["edge"])

_Who = Annotated[ProjectAuthority, Depends(in_own_project(Permission.JOBS))]
_Reader = Annotated[
    ProjectAuthority, Depends(in_own_project(Permission.JOBS, or_else=Permission.READ))
]


def _service(request: Request) -> Exports:
    return request.app.state.exports


def newest_first(
    after: str | None = None, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20
) -> Window:
    """Return the part of a list that is asked for, newest first."""
    return Window(after=after, limit=limit, is_newest_first=True)


_Service = Annotated[Exports, Depends(_service)]
_WindowDep = Annotated[Window, Depends(newest_first)]


@router.post("")
def create_export(body: ExportBody, request: Request, who: _Who, service: _Service) -> ExportObject:
    """Make an export of a base model, or of a tuned model of the project."""
    return shown(service.create(who, body, request_id_of(request.scope)))


@router.get("")
def list_exports(who: _Reader, service: _Service, window: _WindowDep) -> ListPage[ExportObject]:
    """List the project's exports, newest first."""
    page = service.exports.list(who.project.id, window)
    return page_of([shown(item) for item in page.items], has_more=page.has_more)


@router.get("/{export_id}")
def get_export(export_id: str, who: _Reader, service: _Service) -> ExportObject:
    """Return one export."""
    return shown(service.exports.get(who.project.id, export_id))


@router.get("/{export_id}/events")
def list_export_events(
    export_id: str, who: _Reader, service: _Service, window: _WindowDep
) -> ListPage[ExportEventObject]:
    """List what an export told, newest first."""
    page = service.exports.events(who.project.id, export_id, window)
    return page_of([shown_event(item) for item in page.items], has_more=page.has_more)


@router.post("/{export_id}/cancel")
def cancel_export(export_id: str, who: _Who, service: _Service) -> ExportObject:
    """End an export; its process ends within seconds."""
    return shown(service.ledger.cancel(who.project.id, export_id))
