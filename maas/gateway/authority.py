"""The one place that decides what a key may do on the control plane.

First the tenant, then the permission: what belongs to another tenant is a 404 whatever the key
may do, so that nobody learns what others have.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from maas.core.errors import Conflict, NotFound, PermissionDenied
from maas.gateway.relay.app import Relay
from maas.gateway.relay.http import request_id_of
from maas.gateway.relay.key_access import KeyAccess
from maas.store.actor import Actor, act_as
from maas.store.key_terms import KeyTerms, loosened
from maas.store.keys import terms_of
from maas.store.records import Project
from maas.store.roles import ADMIN_SCOPE, OF_ROLE, OF_SCOPE, Permission
from maas.store.tenancy import Tenancy

ORGANIZATION_HEADER = "openai-organization"


@dataclass(frozen=True)
class Authority:
    """Who asks, about whose things, and what they may do with them.

    Attributes:
        organization_id: The organisation that is asked about.
        permissions: What the key may do there.
    """

    access: KeyAccess
    organization_id: str
    permissions: frozenset[Permission]
    tenancy: Tenancy

    def check_may_grant(self, project: Project, terms: KeyTerms) -> None:
        """Check that a key on these terms can do nothing that this one cannot.

        Raises:
            PermissionDenied: It could.
        """
        self.check_may_revoke(project, terms)
        if self.access.is_operator or terms.user_id in {None, self.access.key.user_id}:
            return
        # A user's key reaches past its project: into the organisation, by the role there.
        wide = self.access.everywhere | self.access.organization_permissions
        if not self._granted(project, terms) <= wide | {Permission.INFERENCE}:
            raise PermissionDenied("only an owner of the organisation makes that user's keys")

    def check_is_restricted_alike(self, terms: KeyTerms) -> None:
        """Check that a key on these terms is restricted at least as this one is.

        Raises:
            InvalidRequest: They make no sense.
            PermissionDenied: It is not.
        """
        if self.access.is_operator:
            return
        wanted = terms.checked(self.tenancy.clock.now())
        looser = loosened(terms_of(self.access.key), wanted)
        if looser is not None:
            raise PermissionDenied(
                f"your key is restricted in {looser}, and a key that it makes must be too"
            )

    def check_may_revoke(self, project: Project, terms: KeyTerms) -> None:
        """Check that a key on these terms can do no more in its project than this one.

        Raises:
            PermissionDenied: It could.
        """
        if self.access.is_operator:
            return
        if ADMIN_SCOPE in terms.scopes:
            raise PermissionDenied("only the operator handles the operator's keys")
        is_other = terms.user_id is not None and terms.user_id != self.access.key.user_id
        if is_other and Permission.MEMBERS not in self.permissions:
            raise PermissionDenied("only an owner handles the keys of another user")
        self.check_may_give(self._granted(project, terms))

    def check_may_give(self, permissions: frozenset[Permission]) -> None:
        """Check that this key has what it gives to another.

        A key that administers asks no model itself, but makes keys that do.

        Raises:
            PermissionDenied: It has not.
        """
        if not permissions <= self.permissions | {Permission.INFERENCE}:
            raise PermissionDenied("that would be able to do more than your key; ask an owner")

    def check_may_weigh(self, weight: int | None) -> None:
        """Check that nobody gives itself more of the engines than others have.

        Raises:
            PermissionDenied: It is more than a tenant may take.
        """
        if weight is not None and weight > 1 and not self.access.is_operator:
            raise PermissionDenied("only the operator gives a project more than weight 1")

    def _granted(self, project: Project, terms: KeyTerms) -> frozenset[Permission]:
        if terms.user_id is not None:
            return OF_ROLE[self.tenancy.users.get(project.organization_id, terms.user_id).role]
        if terms.service_account_id is not None:
            account = self.tenancy.service_accounts.get(project.id, terms.service_account_id)
            return OF_ROLE[account.role]
        return frozenset[Permission]().union(*(OF_SCOPE[scope] for scope in terms.scopes))


@dataclass(frozen=True)
class ProjectAuthority(Authority):
    """The same, about the project that the route names."""

    project: Project


async def _identified(request: Request) -> KeyAccess:
    relay: Relay = request.app.state.relay
    access = relay.identify(request.scope)
    act_as(Actor("api_key", access.key.id, request_id_of(request.scope)))
    return access


def _tenancy(request: Request) -> Tenancy:
    return request.app.state.tenancy


TenancyDep = Annotated[Tenancy, Depends(_tenancy)]
IdentifiedDep = Annotated[KeyAccess, Depends(_identified)]


def _named_organization(request: Request, access: KeyAccess, tenancy: Tenancy) -> str:
    """Return the organisation that the request is about.

    Raises:
        NotFound: It names another one, and only the operator may.
    """
    own = access.project.organization_id
    named = request.headers.get(ORGANIZATION_HEADER)
    if not named:
        return own
    organization = tenancy.organizations.find(named)
    if organization.id != own and not access.is_operator:
        raise NotFound(f"no organisation is called {named!r}; list them with: maas org list")
    return organization.id


def _check(permissions: frozenset[Permission], needed: Permission) -> None:
    if needed not in permissions:
        raise PermissionDenied(f"this API key lacks the permission {needed.value!r}")


def in_organization(needed: Permission) -> Callable[..., Authority]:
    """Return the dependency of a route about an organisation.

    Args:
        needed: The permission that the route needs.
    """

    def authorize(request: Request, access: IdentifiedDep, tenancy: TenancyDep) -> Authority:
        organization_id = _named_organization(request, access, tenancy)
        permissions = access.everywhere | access.organization_permissions
        _check(permissions, needed)
        return Authority(access, organization_id, permissions, tenancy)

    return authorize


def in_project(needed: Permission) -> Callable[..., ProjectAuthority]:
    """Return the dependency of a route about a project, named in its path.

    Args:
        needed: The permission that the route needs.
    """

    def authorize(
        project_id: str, request: Request, access: IdentifiedDep, tenancy: TenancyDep
    ) -> ProjectAuthority:
        _named_organization(request, access, tenancy)
        project = tenancy.projects.get(project_id)
        permissions = _permissions_in(project, access)
        if not permissions:
            raise NotFound(
                f"no project is called {project_id!r}; list them with: maas project list"
            )
        _check(permissions, needed)
        if project.archived_at is not None and request.method != "GET":
            raise Conflict(f"the project {project_id!r} is archived")
        return ProjectAuthority(access, project.organization_id, permissions, tenancy, project)

    return authorize


def in_own_project(
    needed: Permission, *, or_else: frozenset[Permission] | Permission | None = None
) -> Callable[..., ProjectAuthority]:
    """Return the dependency of a route about what is in the key's own project.

    Args:
        needed: The permission that the route needs.
        or_else: Another one that will do, or several of which each will.
    """
    others = or_else if isinstance(or_else, frozenset) else frozenset({or_else} - {None})

    def authorize(access: IdentifiedDep, tenancy: TenancyDep) -> ProjectAuthority:
        project = access.project
        permissions = _permissions_in(project, access)
        if not others & permissions:
            _check(permissions, needed)
        return ProjectAuthority(access, project.organization_id, permissions, tenancy, project)

    return authorize


def check_may_upload(access: KeyAccess) -> None:
    """Check that a key may upload files to its project.

    Raises:
        PermissionDenied: It may not.
    """
    _check(_permissions_in(access.project, access), Permission.FILES)


def check_is_device(access: KeyAccess) -> None:
    """Check that a key is a device's own.

    Raises:
        PermissionDenied: It is another one, whatever else it may do.
    """
    _check(access.project_permissions, Permission.DEVICE)


def check_may_tune(access: KeyAccess) -> None:
    """Check that a key may make tuned models in its project.

    Raises:
        PermissionDenied: It may not.
    """
    _check(_permissions_in(access.project, access), Permission.JOBS)


def _permissions_in(project: Project, access: KeyAccess) -> frozenset[Permission]:
    if access.is_operator:
        return access.everywhere
    if project.organization_id != access.project.organization_id:
        return frozenset()
    own = access.project_permissions if project.id == access.project.id else frozenset[Permission]()
    return own | access.everywhere
