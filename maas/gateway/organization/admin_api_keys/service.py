"""Keys that administer an organisation; they are rows of its first project."""

from maas.core.errors import NotFound
from maas.gateway.authority import Authority
from maas.gateway.organization.admin_api_keys.schemas import (
    AdminKey,
    AdminKeyBody,
    NewAdminKey,
    shown,
)
from maas.gateway.organization.pages import ListPage, page_of
from maas.store.pages import Window
from maas.store.records import ApiKey
from maas.store.roles import ORGANIZATION_SCOPE


def list_keys(who: Authority, window: Window) -> ListPage[AdminKey]:
    """Return a page of the organisation's keys."""
    page = who.tenancy.keys.read_page(_project_id(who), window, is_admin=True)
    items = [shown(key, who.organization_id) for key in page.items]
    return page_of(items, has_more=page.has_more)


def create_key(who: Authority, body: AdminKeyBody) -> NewAdminKey:
    """Make a key.

    Raises:
        PermissionDenied: It could do more than the one that asks.
    """
    terms = body.terms(who.tenancy.clock.now(), scopes=(ORGANIZATION_SCOPE,))
    who.check_is_restricted_alike(terms)
    key, value = who.tenancy.keys.create(project_id=_project_id(who), name=body.name, terms=terms)
    return NewAdminKey(**shown(key, who.organization_id).model_dump(), value=value)


def find_key(who: Authority, key_id: str) -> ApiKey:
    """Return a key.

    Raises:
        NotFound: The organisation has no such key.
    """
    key = who.tenancy.keys.get(key_id, project_id=_project_id(who))
    if key.revoked_at is not None or ORGANIZATION_SCOPE not in key.scopes:
        raise NotFound(f"no API key has the id {key_id!r}")
    return key


def delete_key(who: Authority, key_id: str) -> None:
    """Revoke a key.

    Raises:
        NotFound: The organisation has no such key.
    """
    who.tenancy.keys.revoke(find_key(who, key_id).id)


def _project_id(who: Authority) -> str:
    return who.tenancy.projects.default_of(who.organization_id).id
