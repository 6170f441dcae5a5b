"""API keys: made, listed, rotated, revoked. The secret is shown once and never stored.

A key reads ``sk-maas-<id>-<secret>``. The secret carries 256 random bits, so one salted
SHA-256 is enough: there is nothing to guess (OWASP asks for slow hashes of *passwords*).
"""

import hashlib
import hmac
import secrets
from collections.abc import Collection, Mapping

from sqlalchemy import ColumnElement, Text, cast, select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import AuthenticationFailed, Conflict, NotFound
from maas.core.ids import new_id
from maas.store.database import Database
from maas.store.key_terms import KeyTerms
from maas.store.pages import Page, Window, read_page
from maas.store.records import ApiKey, LimitScope
from maas.store.roles import DEVICE_SCOPE, ORGANIZATION_SCOPE
from maas.store.tenancy_tables import (
    ApiKeyRow,
    LimitRow,
    ProjectRow,
    ServiceAccountRow,
    UserRow,
)
from maas.store.text import as_name

KEY_PREFIX = "sk-maas-"
_REFUSED = "the API key is missing, unknown or revoked; make one with: maas key create --name NAME"
# Compared against when no such key exists, so that every refusal does the same work.
_NOBODY = ApiKey("", "", "", "0" * 32, "0" * 64, (), 0.0, None)


def digest_of(secret: str, salt: str) -> str:
    """Return the hex SHA-256 of salt and secret."""
    return hashlib.sha256(f"{salt}{secret}".encode()).hexdigest()


def check_key(presented: str, keys_by_id: Mapping[str, ApiKey]) -> ApiKey:
    """Return the key that was presented.

    Takes the same time for a missing, an unknown, a wrong and a revoked key.

    Raises:
        AuthenticationFailed: It is none of ours, or was revoked.
    """
    key_id, _, secret = presented.removeprefix(KEY_PREFIX).partition("-")
    key = keys_by_id.get(key_id, _NOBODY)
    is_match = hmac.compare_digest(digest_of(secret, key.salt), key.digest)
    if not is_match or key.revoked_at is not None:
        raise AuthenticationFailed(_REFUSED)
    return key


def record_of(row: ApiKeyRow) -> ApiKey:
    """Return the row as a frozen record."""
    return ApiKey(
        id=row.id,
        project_id=row.project_id,
        name=row.name,
        salt=row.salt,
        digest=row.digest,
        scopes=tuple(row.scopes),
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        user_id=row.user_id,
        service_account_id=row.service_account_id,
        models=tuple(row.models),
        endpoints=tuple(row.endpoints),
        networks=tuple(row.networks),
        expires_at=row.expires_at,
        replaced_by=row.replaced_by,
    )


def terms_of(key: ApiKey) -> KeyTerms:
    """Return the terms a key was made on."""
    return KeyTerms(
        scopes=key.scopes,
        user_id=key.user_id,
        service_account_id=key.service_account_id,
        models=key.models,
        endpoints=key.endpoints,
        networks=key.networks,
        expires_at=key.expires_at,
    )


def revoke_keys_of(session: Session, owned: ColumnElement[bool], now: float) -> None:
    """Revoke the keys that a condition names."""
    wanted = select(ApiKeyRow).where(owned, ApiKeyRow.revoked_at.is_(None))
    for row in session.scalars(wanted):
        row.revoked_at = now


class KeyRepository:
    """Reads and writes API keys."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(
        self,
        *,
        project_id: str,
        name: str,
        scopes: tuple[str, ...] = ("inference",),
        terms: KeyTerms | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key.

        Args:
            project_id: Whose.
            name: What it is for.
            scopes: As in ``ApiKey``, where there are no terms.
            terms: All that restricts it.

        Returns:
            The record, and the full key: the only time anybody sees it.

        Raises:
            InvalidRequest: The terms make no sense.
            NotFound: Its user or service account is not there.
        """
        now = self._clock.now()
        checked = (terms or KeyTerms(scopes=scopes)).checked(now)
        row, full_key = new_row(project_id, name, checked, now)
        with self._database.write() as session:
            _check_owner(session, row)
            session.add(row)
        return record_of(row), full_key

    def list(self, project_id: str | None = None) -> tuple[ApiKey, ...]:
        """Return all keys, revoked ones too, oldest first.

        Args:
            project_id: Whose; none returns those of all.
        """
        wanted = select(ApiKeyRow).order_by(ApiKeyRow.created_at)
        if project_id is not None:
            wanted = wanted.where(ApiKeyRow.project_id == project_id)
        with self._database.read() as session:
            return tuple(record_of(row) for row in session.scalars(wanted))

    def read_page(self, project_id: str, window: Window, *, is_admin: bool = False) -> Page[ApiKey]:
        """Return keys of a project that are not revoked; those of devices come with the devices.

        Args:
            project_id: Whose.
            window: The part of the list.
            is_admin: Whether those that administer the organisation are wanted, or the others.
        """
        # As text, which both databases search in the same way.
        administers = cast(ApiKeyRow.scopes, Text).contains(f'"{ORGANIZATION_SCOPE}"')
        is_devices = cast(ApiKeyRow.scopes, Text).contains(f'"{DEVICE_SCOPE}"')
        wanted = select(ApiKeyRow).where(
            ApiKeyRow.project_id == project_id,
            ApiKeyRow.revoked_at.is_(None),
            administers if is_admin else ~administers,
            ~is_devices,
        )
        with self._database.read() as session:
            order = (ApiKeyRow.created_at, ApiKeyRow.id)
            page = read_page(session, wanted, order=order, window=window)
            return Page(tuple(record_of(row) for row in page.items), page.has_more)

    def get(self, key_id: str, *, project_id: str | None = None) -> ApiKey:
        """Return one key.

        Args:
            key_id: Of the key.
            project_id: Where it must be; none looks everywhere.

        Raises:
            NotFound: There is no such key.
        """
        with self._database.read() as session:
            return record_of(_get(session, key_id, project_id))

    def find_many(self, key_ids: Collection[str]) -> dict[str, ApiKey]:
        """Return those keys of some ids that there are or were."""
        with self._database.read() as session:
            rows = session.scalars(select(ApiKeyRow).where(ApiKeyRow.id.in_(key_ids)))
            return {row.id: record_of(row) for row in rows}

    def of_users(self, user_ids: Collection[str]) -> tuple[str, ...]:
        """Return the ids of all keys that some users have or had."""
        with self._database.read() as session:
            found = session.scalars(select(ApiKeyRow.id).where(ApiKeyRow.user_id.in_(user_ids)))
            return tuple(found)

    def revoke(self, key_id: str, *, project_id: str | None = None) -> ApiKey:
        """Revoke a key; doing so twice keeps the first time.

        Raises:
            NotFound: There is no such key.
        """
        with self._database.write() as session:
            row = _get(session, key_id, project_id)
            row.revoked_at = row.revoked_at or self._clock.now()
        return record_of(row)

    def rotate(
        self, key_id: str, *, overlap_s: float, project_id: str | None = None
    ) -> tuple[ApiKey, str]:
        """Make a key on the same terms and limits, and let the old one live a while longer.

        A key that was made to expire is replaced by one that lives as long, from now on.

        Args:
            key_id: Of the old key.
            overlap_s: Seconds until the old one expires.
            project_id: Where it must be; none looks everywhere.

        Returns:
            The new record, and the full key: the only time anybody sees it.

        Raises:
            NotFound: There is no such key.
            Conflict: It is revoked, expired, a device's, or was replaced before.
        """
        now = self._clock.now()
        with self._database.write() as session:
            old = _get(session, key_id, project_id)
            if DEVICE_SCOPE in old.scopes:
                # A device is known by its key; another one would be nobody's.
                raise Conflict(f"the key {key_id!r} is a device's: enrol the device anew")
            is_over = old.expires_at is not None and old.expires_at <= now
            if old.revoked_at is not None or is_over or old.replaced_by is not None:
                raise Conflict(f"the key {key_id!r} is revoked, expired or replaced already")
            lifetime = old.expires_at - old.created_at if old.expires_at is not None else None
            row, full_key = new_row(old.project_id, old.name, terms_of(record_of(old)), now)
            row.expires_at = now + lifetime if lifetime is not None else None
            session.add(row)
            _copy_limits(session, old.id, row.id)
            ends_at = now + max(overlap_s, 0.0)
            old.expires_at = min(old.expires_at, ends_at) if old.expires_at else ends_at
            old.replaced_by = row.id
        return record_of(row), full_key


def new_row(project_id: str, name: str, terms: KeyTerms, now: float) -> tuple[ApiKeyRow, str]:
    """Return a key's row, to be added to a session, and the full key."""
    # The id must not hold a dash: the first dash after the prefix ends it.
    key_id = new_id("key").replace("-", "")
    secret = secrets.token_urlsafe(32)
    salt = secrets.token_hex(16)
    row = ApiKeyRow(
        id=key_id,
        project_id=project_id,
        name=as_name(name),
        salt=salt,
        digest=digest_of(secret, salt),
        scopes=list(terms.scopes),
        created_at=now,
        revoked_at=None,
        user_id=terms.user_id,
        service_account_id=terms.service_account_id,
        models=list(terms.models),
        endpoints=list(terms.endpoints),
        networks=list(terms.networks),
        expires_at=terms.expires_at,
        replaced_by=None,
    )
    return row, f"{KEY_PREFIX}{key_id}-{secret}"


def _check_owner(session: Session, row: ApiKeyRow) -> None:
    if row.user_id is not None:
        user = session.get(UserRow, row.user_id)
        project = session.get_one(ProjectRow, row.project_id)
        if user is None or (user.organization_id, user.deleted_at) != (
            project.organization_id,
            None,
        ):
            raise NotFound(f"no user has the id {row.user_id!r}")
    if row.service_account_id is not None:
        account = session.get(ServiceAccountRow, row.service_account_id)
        if account is None or (account.project_id, account.deleted_at) != (row.project_id, None):
            raise NotFound(f"the project has no service account {row.service_account_id!r}")


def _copy_limits(session: Session, old_id: str, new_id_: str) -> None:
    of_key = (LimitRow.scope == LimitScope.KEY.value) & (LimitRow.scope_id == old_id)
    for limit in session.scalars(select(LimitRow).where(of_key)).all():
        session.add(
            LimitRow(
                id=new_id("limit"),
                organization_id=limit.organization_id,
                project_id=limit.project_id,
                scope=limit.scope,
                scope_id=new_id_,
                model=limit.model,
                requests_per_minute=limit.requests_per_minute,
                tokens_per_minute=limit.tokens_per_minute,
                concurrent_requests=limit.concurrent_requests,
                tokens_per_day=limit.tokens_per_day,
                monthly_budget=limit.monthly_budget,
            )
        )


def _get(session: Session, key_id: str, project_id: str | None) -> ApiKeyRow:
    row = session.get(ApiKeyRow, key_id)
    if row is None or (project_id is not None and row.project_id != project_id):
        raise NotFound(f"no API key has the id {key_id!r}; list them with: maas key list")
    return row
