"""The keys that gateways must know, read again and again: a key that is as it was is taken over.

Each device that enrols makes every gateway read all keys anew. A row costs a tenth of the record
that is made of it, and one row differs: so what was made of the others is kept by what the
database says of them, to the last column.
"""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, cast, or_, select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.store.records import ApiKey
from maas.store.tenancy_tables import ApiKeyRow

EXPIRED_KNOWN_S = 7 * 86400
_FIELDS = tuple(ApiKey.__dataclass_fields__)
_LISTS = frozenset({"scopes", "models", "endpoints", "networks"})
_Raw = tuple[Any, ...]


class LivingKeys:
    """Reads keys; keeps what it made of them until they are read again.

    Args:
        clock: Says which have expired long ago.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: Mapping[_Raw, ApiKey] = {}

    def read(self, session: Session) -> tuple[ApiKey, ...]:
        """Return the keys as they are now: a revoked one is refused as an unknown one is.

        A key that has expired is known for a while longer, so that its owner is told.
        """
        known, found = self._known, dict[_Raw, ApiKey]()
        for row in session.execute(self._wanted()):
            raw = tuple(row)
            found[raw] = known.get(raw) or _record_of(raw)
        # Replaced and never changed: others may be reading at the same time.
        self._known = found
        return tuple(found.values())

    def _wanted(self) -> Select[Any]:
        told_until = self._clock.now() - EXPIRED_KNOWN_S
        return select(*map(_column, _FIELDS)).where(
            ApiKeyRow.revoked_at.is_(None),
            or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > told_until),
        )


def _column(name: str) -> ColumnElement[Any]:
    column = ApiKeyRow.__table__.c[name]
    # Lists as they are written down: most are of keys that are known, and never parsed again.
    return cast(column, Text) if name in _LISTS else column


def _record_of(raw: _Raw) -> ApiKey:
    values: dict[str, Any] = dict(zip(_FIELDS, raw, strict=True))
    for name in _LISTS:
        values[name] = tuple(json.loads(values[name]))
    return ApiKey(**values)
