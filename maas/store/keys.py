"""API keys: made, listed, revoked. The secret is shown once and never stored.

A key reads ``sk-maas-<id>-<secret>``. The secret carries 256 random bits, so one salted
SHA-256 is enough: there is nothing to guess (OWASP asks for slow hashes of *passwords*).
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping

from sqlalchemy import select

from maas.core.clock import Clock
from maas.core.errors import AuthenticationFailed, NotFound
from maas.core.ids import new_id
from maas.store.database import Database
from maas.store.records import ApiKey
from maas.store.tables import ApiKeyRow

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
    )


class KeyRepository:
    """Reads and writes API keys."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(
        self, *, project_id: str, name: str, scopes: tuple[str, ...] = ("inference",)
    ) -> tuple[ApiKey, str]:
        """Make a key.

        Returns:
            The record, and the full key: the only time anybody sees it.
        """
        # The id must not hold a dash: the first dash after the prefix ends it.
        key_id = new_id("key").replace("-", "")
        secret = secrets.token_urlsafe(32)
        salt = secrets.token_hex(16)
        row = ApiKeyRow(
            id=key_id,
            project_id=project_id,
            name=name,
            salt=salt,
            digest=digest_of(secret, salt),
            scopes=list(scopes),
            created_at=self._clock.now(),
            revoked_at=None,
        )
        with self._database.write() as session:
            session.add(row)
        return record_of(row), f"{KEY_PREFIX}{key_id}-{secret}"

    def list(self) -> tuple[ApiKey, ...]:
        """Return all keys, revoked ones too, oldest first."""
        with self._database.read() as session:
            rows = session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at))
            return tuple(record_of(row) for row in rows)

    def revoke(self, key_id: str) -> ApiKey:
        """Revoke a key; doing so twice keeps the first time.

        Raises:
            NotFound: There is no such key.
        """
        with self._database.write() as session:
            row = session.get(ApiKeyRow, key_id)
            if row is None:
                raise NotFound(f"no API key has the id {key_id!r}; list them with: maas key list")
            row.revoked_at = row.revoked_at or self._clock.now()
        return record_of(row)
