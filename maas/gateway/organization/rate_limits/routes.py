"""List and change rate limits; those of an organisation and of a key are ours."""

from typing import Annotated

from fastapi import APIRouter, Depends

from maas.gateway.access import SnapshotDep
from maas.gateway.authority import Authority, ProjectAuthority, in_organization, in_project
from maas.gateway.organization.pages import ListPage, WindowDep
from maas.gateway.organization.rate_limits import service
from maas.gateway.organization.rate_limits.schemas import RateLimit, RateLimitBody
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/organization", tags=["organization"])

_Reader = Annotated[ProjectAuthority, Depends(in_project(Permission.READ))]
_Payer = Annotated[ProjectAuthority, Depends(in_project(Permission.LIMITS))]
_OrganizationReader = Annotated[Authority, Depends(in_organization(Permission.READ))]
_OrganizationPayer = Annotated[Authority, Depends(in_organization(Permission.LIMITS))]


@router.get("/rate_limits")
def list_organization_limits(
    who: _OrganizationReader, snapshot: SnapshotDep, window: WindowDep
) -> ListPage[RateLimit]:
    """List the organisation's rate limits."""
    return service.list_limits(who, service.of_organization(who), snapshot, window)


@router.post("/rate_limits/{rate_limit_id:path}")
def modify_organization_limit(
    rate_limit_id: str, body: RateLimitBody, who: _OrganizationPayer
) -> RateLimit:
    """Change a rate limit of the organisation."""
    return service.modify_limit(who, service.of_organization(who), rate_limit_id, body)


@router.get("/projects/{project_id}/rate_limits")
def list_project_limits(
    who: _Reader, snapshot: SnapshotDep, window: WindowDep
) -> ListPage[RateLimit]:
    """List the project's rate limits."""
    return service.list_limits(who, service.of_project(who), snapshot, window)


@router.post("/projects/{project_id}/rate_limits/{rate_limit_id:path}")
def modify_project_limit(rate_limit_id: str, body: RateLimitBody, who: _Payer) -> RateLimit:
    """Change a rate limit of the project."""
    return service.modify_limit(who, service.of_project(who), rate_limit_id, body)


@router.get("/projects/{project_id}/api_keys/{key_id}/rate_limits")
def list_key_limits(
    key_id: str, who: _Reader, snapshot: SnapshotDep, window: WindowDep
) -> ListPage[RateLimit]:
    """List a key's rate limits."""
    return service.list_limits(who, service.of_key(who, key_id), snapshot, window)


@router.post("/projects/{project_id}/api_keys/{key_id}/rate_limits/{rate_limit_id:path}")
def modify_key_limit(
    key_id: str, rate_limit_id: str, body: RateLimitBody, who: _Payer
) -> RateLimit:
    """Change a rate limit of a key."""
    return service.modify_limit(who, service.of_key(who, key_id), rate_limit_id, body)
