"""List, make, show and remove service accounts of a project."""

from typing import Annotated

from fastapi import APIRouter, Depends

from maas.gateway.authority import ProjectAuthority, in_project
from maas.gateway.organization.pages import ListPage, WindowDep, page_of
from maas.gateway.organization.service_accounts import service
from maas.gateway.organization.service_accounts.schemas import (
    NewServiceAccount,
    ServiceAccount,
    ServiceAccountBody,
    shown,
)
from maas.gateway.organization.wire import Deleted
from maas.store.roles import Permission

router = APIRouter(
    prefix="/v1/organization/projects/{project_id}/service_accounts", tags=["organization"]
)

_Reader = Annotated[ProjectAuthority, Depends(in_project(Permission.READ))]
_Owner = Annotated[ProjectAuthority, Depends(in_project(Permission.MEMBERS))]


@router.get("")
def list_service_accounts(who: _Reader, window: WindowDep) -> ListPage[ServiceAccount]:
    """List the project's service accounts."""
    page = who.tenancy.service_accounts.list(who.project.id, window)
    return page_of([shown(item) for item in page.items], has_more=page.has_more)


@router.post("")
def create_service_account(body: ServiceAccountBody, who: _Owner) -> NewServiceAccount:
    """Make a service account; its key's value is shown in this answer and never again."""
    return service.create(who, body)


@router.get("/{account_id}")
def get_service_account(account_id: str, who: _Reader) -> ServiceAccount:
    """Return one service account."""
    return shown(who.tenancy.service_accounts.get(who.project.id, account_id))


@router.delete("/{account_id}")
def delete_service_account(account_id: str, who: _Owner) -> Deleted:
    """Remove a service account and revoke its keys."""
    who.tenancy.service_accounts.delete(who.project.id, account_id)
    return Deleted(object="organization.project.service_account.deleted", id=account_id)
