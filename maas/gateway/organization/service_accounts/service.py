"""Service accounts: made with a key, as OpenAI does."""

from maas.gateway.authority import ProjectAuthority
from maas.gateway.organization.service_accounts.schemas import (
    AccountKey,
    NewServiceAccount,
    ServiceAccountBody,
    shown,
)
from maas.gateway.organization.wire import seconds
from maas.store.key_terms import KeyTerms
from maas.store.roles import OF_ROLE


def create(who: ProjectAuthority, body: ServiceAccountBody) -> NewServiceAccount:
    """Make a service account and, unless it is not wanted, its first key.

    Raises:
        PermissionDenied: It could do more than the key that asks.
    """
    who.check_may_give(OF_ROLE[body.role])
    # In one transaction: no account is left without its key.
    with who.tenancy.database.together():
        account = who.tenancy.service_accounts.create(
            who.project.id, name=body.name, role=body.role
        )
        key = None if body.create_service_account_only else _first_key(who, account.id, body)
    return NewServiceAccount(**shown(account).model_dump(), api_key=key)


def _first_key(who: ProjectAuthority, account_id: str, body: ServiceAccountBody) -> AccountKey:
    lifetime = body.expires_in_seconds
    terms = KeyTerms(
        scopes=(),
        service_account_id=account_id,
        expires_at=who.tenancy.clock.now() + lifetime if lifetime is not None else None,
    )
    who.check_is_restricted_alike(terms)
    key, value = who.tenancy.keys.create(project_id=who.project.id, name=body.name, terms=terms)
    return AccountKey(
        id=key.id,
        name=key.name,
        value=value,
        created_at=int(key.created_at),
        expires_at=seconds(key.expires_at),
    )
