"""Show, set and remove monthly budgets."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from maas.gateway.authority import Authority, ProjectAuthority, in_organization, in_project
from maas.gateway.organization.rate_limits.service import of_organization, of_project
from maas.gateway.organization.spend_limits import service
from maas.gateway.organization.spend_limits.schemas import (
    SpendLimit,
    SpendLimitBody,
    SpendLimitDeleted,
)
from maas.gateway.organization.spend_limits.service import Spent
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/organization", tags=["organization"])


def _spent(request: Request) -> Spent:
    return request.app.state.spent


_SpentDep = Annotated[Spent, Depends(_spent)]
_Reader = Annotated[ProjectAuthority, Depends(in_project(Permission.READ))]
_Payer = Annotated[ProjectAuthority, Depends(in_project(Permission.LIMITS))]
_OrganizationReader = Annotated[Authority, Depends(in_organization(Permission.READ))]
_OrganizationPayer = Annotated[Authority, Depends(in_organization(Permission.LIMITS))]


@router.get("/spend_limit")
def get_organization_budget(who: _OrganizationReader, spent: _SpentDep) -> SpendLimit:
    """Return the organisation's monthly budget."""
    return service.get_budget(who, of_organization(who), spent)


@router.post("/spend_limit")
def set_organization_budget(
    body: SpendLimitBody, who: _OrganizationPayer, spent: _SpentDep
) -> SpendLimit:
    """Make or replace the organisation's monthly budget."""
    return service.set_budget(who, of_organization(who), body, spent)


@router.delete("/spend_limit")
def delete_organization_budget(who: _OrganizationPayer, spent: _SpentDep) -> SpendLimitDeleted:
    """Take the organisation's monthly budget away."""
    return SpendLimitDeleted(object=service.delete_budget(who, of_organization(who), spent))


@router.get("/projects/{project_id}/spend_limit")
def get_project_budget(who: _Reader, spent: _SpentDep) -> SpendLimit:
    """Return the project's monthly budget."""
    return service.get_budget(who, of_project(who), spent)


@router.post("/projects/{project_id}/spend_limit")
def set_project_budget(body: SpendLimitBody, who: _Payer, spent: _SpentDep) -> SpendLimit:
    """Make or replace the project's monthly budget."""
    return service.set_budget(who, of_project(who), body, spent)


@router.delete("/projects/{project_id}/spend_limit")
def delete_project_budget(who: _Payer, spent: _SpentDep) -> SpendLimitDeleted:
    """Take the project's monthly budget away."""
    return SpendLimitDeleted(object=service.delete_budget(who, of_project(who), spent))
