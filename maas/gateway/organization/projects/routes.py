"""List, make, show, change and archive projects."""

from typing import Annotated

from fastapi import APIRouter, Depends

from maas.gateway.authority import Authority, ProjectAuthority, in_organization, in_project
from maas.gateway.organization.pages import ListPage, WindowDep, page_of
from maas.gateway.organization.projects.schemas import (
    Project,
    ProjectBody,
    ProjectChangeBody,
    shown,
)
from maas.store.projects import ProjectChange
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/organization/projects", tags=["organization"])


@router.get("")
def list_projects(
    who: Annotated[Authority, Depends(in_organization(Permission.READ))],
    window: WindowDep,
    include_archived: bool = False,
) -> ListPage[Project]:
    """List the organisation's projects."""
    page = who.tenancy.projects.list(who.organization_id, window, with_archived=include_archived)
    return page_of([shown(item) for item in page.items], has_more=page.has_more)


@router.post("")
def create_project(
    body: ProjectBody,
    who: Annotated[Authority, Depends(in_organization(Permission.MEMBERS))],
) -> Project:
    """Make a project."""
    who.check_may_weigh(body.weight)
    made = who.tenancy.projects.create(
        who.organization_id, body.name, weight=body.weight, priority=body.priority
    )
    return shown(made)


@router.get("/{project_id}")
def get_project(
    who: Annotated[ProjectAuthority, Depends(in_project(Permission.READ))],
) -> Project:
    """Return one project."""
    return shown(who.project)


@router.post("/{project_id}")
def modify_project(
    body: ProjectChangeBody,
    who: Annotated[ProjectAuthority, Depends(in_project(Permission.MEMBERS))],
) -> Project:
    """Change a project's name, weight or priority."""
    who.check_may_weigh(body.weight)
    change = ProjectChange(name=body.name, weight=body.weight, priority=body.priority)
    return shown(who.tenancy.projects.modify(who.project.id, change))


@router.post("/{project_id}/archive")
def archive_project(
    who: Annotated[ProjectAuthority, Depends(in_project(Permission.MEMBERS))],
) -> Project:
    """Archive a project: its keys are refused from now on."""
    return shown(who.tenancy.projects.archive(who.project.id))
