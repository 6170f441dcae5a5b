"""List, add, show, change and remove users of a project."""

from typing import Annotated

from fastapi import APIRouter, Depends

from maas.gateway.authority import ProjectAuthority, in_project
from maas.gateway.organization.pages import ListPage, WindowDep, page_of
from maas.gateway.organization.project_users import service
from maas.gateway.organization.project_users.schemas import MemberBody, ProjectUser, shown
from maas.gateway.organization.users.schemas import RoleBody
from maas.gateway.organization.wire import Deleted
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/organization/projects/{project_id}/users", tags=["organization"])

_Reader = Annotated[ProjectAuthority, Depends(in_project(Permission.READ))]
_Owner = Annotated[ProjectAuthority, Depends(in_project(Permission.MEMBERS))]


@router.get("")
def list_project_users(who: _Reader, window: WindowDep) -> ListPage[ProjectUser]:
    """List the project's users."""
    page = who.tenancy.users.list_members(who.project.id, window)
    return page_of([shown(*pair) for pair in page.items], has_more=page.has_more)


@router.post("")
def add_project_user(body: MemberBody, who: _Owner) -> ProjectUser:
    """Give a user of the organisation a role in the project."""
    return service.add(who, body)


@router.get("/{user_id}")
def get_project_user(user_id: str, who: _Reader) -> ProjectUser:
    """Return one user of the project."""
    return shown(*who.tenancy.users.get_member(who.project.id, user_id))


@router.post("/{user_id}")
def modify_project_user(user_id: str, body: RoleBody, who: _Owner) -> ProjectUser:
    """Change a user's role in the project."""
    who.tenancy.users.modify_member(who.project.id, user_id, body.role)
    return shown(*who.tenancy.users.get_member(who.project.id, user_id))


@router.delete("/{user_id}")
def remove_project_user(user_id: str, who: _Owner) -> Deleted:
    """Take a user out of the project and revoke the user's keys of it."""
    who.tenancy.users.remove_member(who.project.id, user_id)
    return Deleted(object="organization.project.user.deleted", id=user_id)
