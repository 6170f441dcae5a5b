"""List, make, show, rotate and revoke keys of a project."""

from typing import Annotated

from fastapi import APIRouter, Depends

from maas.gateway.authority import ProjectAuthority, in_project
from maas.gateway.organization.api_keys import service
from maas.gateway.organization.api_keys.schemas import Key, KeyBody, NewKey, RotationBody
from maas.gateway.organization.pages import ListPage, WindowDep
from maas.gateway.organization.wire import Deleted
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/organization/projects/{project_id}/api_keys", tags=["organization"])

_Reader = Annotated[ProjectAuthority, Depends(in_project(Permission.READ))]
_Keeper = Annotated[ProjectAuthority, Depends(in_project(Permission.KEYS))]


@router.get("")
def list_keys(who: _Reader, window: WindowDep) -> ListPage[Key]:
    """List the project's keys; never their values."""
    return service.list_keys(who, window)


@router.post("")
def create_key(body: KeyBody, who: _Keeper) -> NewKey:
    """Make a key. Its value is shown in this answer and never again."""
    return service.create_key(who, body)


@router.get("/{key_id}")
def get_key(key_id: str, who: _Reader) -> Key:
    """Return one key."""
    return service.get_key(who, key_id)


@router.post("/{key_id}/rotate")
def rotate_key(key_id: str, who: _Keeper, body: RotationBody | None = None) -> NewKey:
    """Make a key in place of another, which lives on for a while."""
    return service.rotate_key(who, key_id, float((body or RotationBody()).overlap_seconds))


@router.delete("/{key_id}")
def delete_key(key_id: str, who: _Keeper) -> Deleted:
    """Revoke a key."""
    service.delete_key(who, key_id)
    return Deleted(object="organization.project.api_key.deleted", id=key_id)
