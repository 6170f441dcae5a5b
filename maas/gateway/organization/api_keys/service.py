"""Keys of a project: whose they are, and who may make, rotate and revoke them."""

from dataclasses import replace

from maas.core.errors import NotFound
from maas.gateway.authority import ProjectAuthority
from maas.gateway.organization.api_keys.schemas import (
    Key,
    KeyBody,
    NewKey,
    Owner,
    account_owner,
    shown,
    user_owner,
)
from maas.gateway.organization.pages import ListPage, page_of
from maas.store.key_terms import KeyTerms
from maas.store.keys import terms_of
from maas.store.pages import Window
from maas.store.records import ApiKey
from maas.store.roles import DEVICE_SCOPE, ORGANIZATION_SCOPE


def list_keys(who: ProjectAuthority, window: Window) -> ListPage[Key]:
    """Return a page of the project's keys."""
    page = who.tenancy.keys.read_page(who.project.id, window)
    return page_of([_shown(who, key) for key in page.items], has_more=page.has_more)


def get_key(who: ProjectAuthority, key_id: str) -> Key:
    """Return one key.

    Raises:
        NotFound: The project has no such key.
    """
    return _shown(who, _find(who, key_id))


def create_key(who: ProjectAuthority, body: KeyBody) -> NewKey:
    """Make a key.

    Raises:
        PermissionDenied: It could do more than the one that asks.
    """
    terms = replace(
        body.terms(who.tenancy.clock.now()),
        user_id=body.user_id,
        service_account_id=body.service_account_id,
    )
    if body.user_id is not None or body.service_account_id is not None:
        terms = replace(terms, scopes=())
    who.check_may_grant(who.project, terms)
    who.check_is_restricted_alike(terms)
    key, value = who.tenancy.keys.create(project_id=who.project.id, name=body.name, terms=terms)
    return _new(who, key, value)


def rotate_key(who: ProjectAuthority, key_id: str, overlap_s: float) -> NewKey:
    """Replace a key.

    Raises:
        PermissionDenied: It may do more than the one that asks.
        NotFound: The project has no such key.
    """
    old = _find(who, key_id)
    who.check_may_grant(who.project, terms_of(old))
    if key_id != who.access.key.id:
        who.check_is_restricted_alike(_renewed(old, who.tenancy.clock.now()))
    key, value = who.tenancy.keys.rotate(key_id, overlap_s=overlap_s, project_id=who.project.id)
    return _new(who, key, value)


def delete_key(who: ProjectAuthority, key_id: str) -> None:
    """Revoke a key.

    Raises:
        PermissionDenied: It may do more than the one that asks.
        NotFound: The project has no such key.
    """
    who.check_may_revoke(who.project, terms_of(_find(who, key_id)))
    who.tenancy.keys.revoke(key_id, project_id=who.project.id)


def _renewed(key: ApiKey, now: float) -> KeyTerms:
    """Return the terms of the key that comes in place of one: it lives as long, from now on."""
    ends_at = None if key.expires_at is None else now + key.expires_at - key.created_at
    return replace(terms_of(key), expires_at=ends_at)


def _find(who: ProjectAuthority, key_id: str) -> ApiKey:
    key = who.tenancy.keys.get(key_id, project_id=who.project.id)
    # Keys that administer the organisation have a list of their own; a device's key lives and ends
    # with the device.
    has_other_place = ORGANIZATION_SCOPE in key.scopes or DEVICE_SCOPE in key.scopes
    if key.revoked_at is not None or has_other_place:
        raise NotFound(f"no API key has the id {key_id!r}")
    return key


def _shown(who: ProjectAuthority, key: ApiKey) -> Key:
    return shown(key, _owner(who, key))


def _new(who: ProjectAuthority, key: ApiKey, value: str) -> NewKey:
    return NewKey(**_shown(who, key).model_dump(), value=value)


def _owner(who: ProjectAuthority, key: ApiKey) -> Owner:
    if key.user_id is not None:
        return user_owner(who.tenancy.users.get(who.organization_id, key.user_id))
    if key.service_account_id is not None:
        account = who.tenancy.service_accounts.get(key.project_id, key.service_account_id)
        return account_owner(account)
    return Owner()
