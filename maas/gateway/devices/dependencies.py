"""What the fleet's routes depend on: who asks, and what they work with."""

from typing import Annotated

from fastapi import Depends, Query, Request

from maas.gateway.authority import ProjectAuthority, in_own_project
from maas.gateway.devices.service import FleetService
from maas.gateway.exports.routes import newest_first
from maas.store.pages import MAX_PAGE, Window
from maas.store.roles import Permission


def _service(request: Request) -> FleetService:
    return request.app.state.fleet


def _oldest_first(
    after: str | None = None, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20
) -> Window:
    return Window(after=after, limit=limit)


# Who may deploy a model may do so on devices; a key that only asks models may not.
WhoDep = Annotated[ProjectAuthority, Depends(in_own_project(Permission.DEPLOYMENTS))]
ReaderDep = Annotated[
    ProjectAuthority, Depends(in_own_project(Permission.DEPLOYMENTS, or_else=Permission.READ))
]
ServiceDep = Annotated[FleetService, Depends(_service)]
NewestDep = Annotated[Window, Depends(newest_first)]
OldestDep = Annotated[Window, Depends(_oldest_first)]
