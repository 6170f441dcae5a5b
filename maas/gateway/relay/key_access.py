"""What each key may do, worked out once a snapshot, so that a request only looks it up."""

import ipaddress
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from starlette.types import Scope

from maas.core.errors import (
    AccessWithdrawn,
    AddressNotAllowed,
    EndpointNotAllowed,
    KeyExpired,
    ModelNotAllowed,
    PermissionDenied,
)
from maas.store.key_terms import is_below
from maas.store.records import ApiKey, DesiredState, Organization, Project, Role
from maas.store.roles import ADMIN_SCOPE, OF_ROLE, OF_SCOPE, ORGANIZATION_SCOPE, Permission

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NOTHING: frozenset[Permission] = frozenset()


@dataclass(frozen=True, slots=True)
class KeyAccess:
    """A key with all that decides about its requests.

    Attributes:
        project_permissions: What it may do in its own project.
        everywhere: What it may do in its organisation and each of its projects.
        organization_permissions: What it may do with the organisation itself.
        is_operator: Whether it may do everything in every organisation.
        withdrawn: Why nobody accepts it any more, whatever it holds; none where that is not so.
        is_restricted: Whether a request must be looked at more closely.
        networks: Parsed; empty accepts every address.
    """

    key: ApiKey
    project: Project
    project_permissions: frozenset[Permission] = _NOTHING
    everywhere: frozenset[Permission] = _NOTHING
    organization_permissions: frozenset[Permission] = _NOTHING
    is_operator: bool = False
    withdrawn: str | None = None
    may_infer: bool = False
    is_restricted: bool = False
    models: frozenset[str] = field(default=frozenset())
    networks: tuple[Network, ...] = ()

    def check(self, scope: Scope, route: str) -> None:
        """Check that the key is accepted here and now.

        Args:
            scope: Of the request; its client's address is looked at.
            route: As the client knows it.

        Raises:
            KeyExpired: Its time is over.
            AddressNotAllowed: The client is in none of its networks.
            EndpointNotAllowed: It is not for this route.
            AccessWithdrawn: Its project, organisation or owner is no more.
        """
        if self.is_restricted:
            self._check(scope, route)

    def check_model(self, name: str, root: str) -> None:
        """Check that the key may ask a model.

        Args:
            name: As it was asked for.
            root: What an alias stands for.

        Raises:
            ModelNotAllowed: It may not.
        """
        if self.models and name not in self.models and root not in self.models:
            raise ModelNotAllowed(
                f"this API key is not for the model {name!r}; it is for: "
                + ", ".join(sorted(self.models)),
                param="model",
            )

    def check_inference(self) -> None:
        """Check that the key may ask models at all.

        Raises:
            PermissionDenied: It may not.
        """
        if not self.may_infer:
            raise PermissionDenied("this API key is not for inference")

    def may_see(self, name: str, root: str) -> bool:
        """Say whether a model is in this key's list of models."""
        return not self.models or name in self.models or root in self.models

    def _check(self, scope: Scope, route: str) -> None:
        if self.withdrawn is not None:
            raise AccessWithdrawn(self.withdrawn)
        key = self.key
        if key.expires_at is not None and time.time() >= key.expires_at:
            moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(key.expires_at))
            raise KeyExpired(f"this API key expired on {moment}; ask for a new one")
        if self.networks and not any(_holds(scope, network) for network in self.networks):
            raise AddressNotAllowed("this API key is not accepted from your network address")
        if key.endpoints and not any(is_below(route, path) for path in key.endpoints):
            raise EndpointNotAllowed(
                f"this API key is not for {route}; it is for: {', '.join(key.endpoints)}"
            )


def _holds(scope: Scope, network: Network) -> bool:
    client = scope.get("client")
    try:
        address = ipaddress.ip_address(client[0]) if client else None
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address is not None and (mapped or address) in network


def key_access(
    state: DesiredState,
    known: Mapping[str, KeyAccess] | None = None,
    known_of: DesiredState | None = None,
) -> dict[str, KeyAccess]:
    """Return what each key of a state may do, by its id.

    Args:
        state: As read from the store.
        known: What was worked out before; taken over for a key that is as it was, where nobody's
            role, project or organisation is another.
        known_of: The state it was worked out of.
    """
    organizations = {item.id: item for item in state.organizations}
    projects = {item.id: item for item in state.projects}
    roles = _Roles(state)
    held = known or {}
    if known_of is None or not _is_ruled_alike(state, known_of):
        held = dict[str, KeyAccess]()
    return {
        key.id: access
        if (access := held.get(key.id)) is not None and access.key is key
        else _access(key, projects[key.project_id], organizations, roles)
        for key in state.keys
        if key.project_id in projects
    }


def _is_ruled_alike(state: DesiredState, other: DesiredState) -> bool:
    """Say whether all but the keys themselves that decides about a key is the same."""
    ruling = attrgetter("organizations", "projects", "users", "members", "service_accounts")
    return ruling(state) == ruling(other)


class _Roles:
    """The roles of a state's people and programs, ready to be looked up."""

    def __init__(self, state: DesiredState) -> None:
        self.users = {user.id: user for user in state.users}
        self.accounts = {account.id: account for account in state.service_accounts}
        self.members = {(m.project_id, m.user_id): m.role for m in state.members}


def _access(
    key: ApiKey, project: Project, organizations: Mapping[str, Organization], roles: _Roles
) -> KeyAccess:
    in_project, everywhere, in_organization = _permissions(key, project, roles)
    withdrawn = next(_withdrawals(project, organizations[project.organization_id]), None)
    is_owned = key.user_id is not None or key.service_account_id is not None
    if withdrawn is None and is_owned and not in_project | everywhere:
        withdrawn = "the owner of this API key is no longer in its project"
    has_terms = bool(key.networks or key.endpoints or key.expires_at is not None)
    return KeyAccess(
        key=key,
        project=project,
        project_permissions=in_project,
        everywhere=everywhere,
        organization_permissions=in_organization,
        is_operator=ADMIN_SCOPE in key.scopes,
        withdrawn=withdrawn,
        may_infer=Permission.INFERENCE in in_project | everywhere,
        is_restricted=has_terms or withdrawn is not None,
        models=frozenset(key.models),
        networks=tuple(ipaddress.ip_network(text) for text in key.networks),
    )


def _withdrawals(project: Project, organization: Organization) -> Iterator[str]:
    if project.archived_at is not None:
        yield f"the project {project.name!r} of this API key is archived"
    if organization.archived_at is not None:
        yield f"the organisation {organization.name!r} of this API key is archived"


_Permissions = tuple[frozenset[Permission], frozenset[Permission], frozenset[Permission]]


def _permissions(key: ApiKey, project: Project, roles: _Roles) -> _Permissions:
    """Return what a key may do in its project, everywhere, and with the organisation itself."""
    if key.service_account_id is not None:
        account = roles.accounts.get(key.service_account_id)
        return (OF_ROLE[account.role] if account else _NOTHING), _NOTHING, _NOTHING
    if key.user_id is not None:
        user = roles.users.get(key.user_id)
        if user is None or user.organization_id != project.organization_id:
            return _NOTHING, _NOTHING, _NOTHING
        in_organization = OF_ROLE[user.role]
        member = roles.members.get((project.id, user.id))
        # A developer's role holds in the projects the user was put in; all others hold everywhere.
        everywhere = _NOTHING if user.role is Role.DEVELOPER else in_organization
        return (OF_ROLE[member] if member else _NOTHING), everywhere, in_organization
    granted = [OF_SCOPE[scope] for scope in key.scopes if scope in OF_SCOPE]
    together = _NOTHING.union(*granted)
    is_wide = ADMIN_SCOPE in key.scopes or ORGANIZATION_SCOPE in key.scopes
    return together, (together if is_wide else _NOTHING), (together if is_wide else _NOTHING)
