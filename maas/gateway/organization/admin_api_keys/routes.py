"""List, make, show and revoke keys that administer an organisation."""

from typing import Annotated

from fastapi import APIRouter, Depends

from maas.gateway.authority import Authority, in_organization
from maas.gateway.organization.admin_api_keys import service
from maas.gateway.organization.admin_api_keys.schemas import (
    AdminKey,
    AdminKeyBody,
    NewAdminKey,
    shown,
)
from maas.gateway.organization.pages import ListPage, WindowDep
from maas.gateway.organization.wire import Deleted
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/organization/admin_api_keys", tags=["organization"])

_Owner = Annotated[Authority, Depends(in_organization(Permission.ORGANIZATION))]


@router.get("")
def list_admin_keys(who: _Owner, window: WindowDep) -> ListPage[AdminKey]:
    """List the keys that administer the organisation."""
    return service.list_keys(who, window)


@router.post("")
def create_admin_key(body: AdminKeyBody, who: _Owner) -> NewAdminKey:
    """Make a key that administers the organisation; its value is shown once."""
    return service.create_key(who, body)


@router.get("/{key_id}")
def get_admin_key(key_id: str, who: _Owner) -> AdminKey:
    """Return one such key."""
    return shown(service.find_key(who, key_id), who.organization_id)


@router.delete("/{key_id}")
def delete_admin_key(key_id: str, who: _Owner) -> Deleted:
    """Revoke one such key."""
    service.delete_key(who, key_id)
    return Deleted(object="organization.admin_api_key.deleted", id=key_id)
