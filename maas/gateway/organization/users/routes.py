"""List, add, show, change and remove users of an organisation."""

from typing import Annotated

from fastapi import APIRouter, Depends

from maas.gateway.authority import Authority, in_organization
from maas.gateway.organization.pages import ListPage, WindowDep, page_of
from maas.gateway.organization.users.schemas import RoleBody, User, UserBody, shown
from maas.gateway.organization.wire import Deleted
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/organization/users", tags=["organization"])

_Reader = Annotated[Authority, Depends(in_organization(Permission.READ))]
_Owner = Annotated[Authority, Depends(in_organization(Permission.MEMBERS))]


@router.get("")
def list_users(who: _Reader, window: WindowDep) -> ListPage[User]:
    """List the organisation's users."""
    page = who.tenancy.users.list(who.organization_id, window)
    return page_of([shown(item) for item in page.items], has_more=page.has_more)


@router.post("")
def create_user(body: UserBody, who: _Owner) -> User:
    """Add a user."""
    made = who.tenancy.users.create(
        who.organization_id, email=body.email, name=body.name, role=body.role
    )
    return shown(made)


@router.get("/{user_id}")
def get_user(user_id: str, who: _Reader) -> User:
    """Return one user."""
    return shown(who.tenancy.users.get(who.organization_id, user_id))


@router.post("/{user_id}")
def modify_user(user_id: str, body: RoleBody, who: _Owner) -> User:
    """Change a user's role in the organisation."""
    return shown(who.tenancy.users.modify(who.organization_id, user_id, body.role))


@router.delete("/{user_id}")
def delete_user(user_id: str, who: _Owner) -> Deleted:
    """Remove a user and revoke the user's keys."""
    who.tenancy.users.delete(who.organization_id, user_id)
    return Deleted(object="organization.user.deleted", id=user_id)
