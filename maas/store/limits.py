"""Limits: how much an organisation, a project, a key or a model's users may use."""

from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.orm import Session

from maas.core.errors import InvalidRequest, NotFound
from maas.core.ids import new_id
from maas.store.database import Database
from maas.store.money import from_nanos, to_nanos
from maas.store.records import Limit, LimitScope
from maas.store.tables import AliasRow
from maas.store.tenancy_tables import ApiKeyRow, LimitRow, OrganizationRow, ProjectRow
from maas.store.text import as_name

COUNTS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests", "tokens_per_day")
_MAX_COUNT = 2**53
_MAX_BUDGET = Decimal(10**9)


@dataclass(frozen=True)
class LimitKey:
    """What a limit is about; see ``Limit``."""

    scope: LimitScope
    scope_id: str
    model: str | None = None


def record_of(row: LimitRow) -> Limit:
    """Return the row as a frozen record."""
    return Limit(
        id=row.id,
        scope=LimitScope(row.scope),
        scope_id=row.scope_id,
        model=row.model or None,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        concurrent_requests=row.concurrent_requests,
        tokens_per_day=row.tokens_per_day,
        monthly_budget=row.monthly_budget,
    )


def _check(values: dict[str, int | Decimal | None]) -> None:
    for name, value in values.items():
        if name not in (*COUNTS, "monthly_budget"):
            raise InvalidRequest(f"there is no limit called {name!r}", param=name)
        if value is None:
            continue
        if isinstance(value, Decimal) and not value.is_finite():
            raise InvalidRequest(f"{name} {value}: want a number", param=name)
        most = _MAX_BUDGET if name == "monthly_budget" else _MAX_COUNT
        if not 0 <= value <= most:
            raise InvalidRequest(f"{name} {value}: want 0 to {most}", param=name)
        if isinstance(value, Decimal) and from_nanos(to_nanos(value)) != value:
            raise InvalidRequest(f"{name} {value}: want at most 9 decimal places", param=name)


class LimitRepository:
    """Reads and writes limits."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set(self, key: LimitKey, **values: int | Decimal | None) -> Limit:
        """Change some numbers of a limit, making it where there is none.

        Args:
            key: What it is about.
            values: By the names of ``Limit``; None takes a number away. What is not given stays.

        Raises:
            NotFound: What it is about is not there.
            InvalidRequest: A number is out of range.
        """
        _check(values)
        with self._database.write() as session:
            row = _find(session, key) or _new(session, key)
            for name, value in values.items():
                setattr(row, name, value)
            record = record_of(row)
            if all(getattr(record, name) is None for name in (*COUNTS, "monthly_budget")):
                # A limit that limits nothing is none.
                if row in session.new:
                    session.expunge(row)
                else:
                    session.delete(row)
        return record

    def get(self, key: LimitKey) -> Limit | None:
        """Return a limit, where there is one."""
        with self._database.read() as session:
            row = _find(session, key)
            return record_of(row) if row is not None else None

    def list(
        self, *, organization_id: str | None = None, project_id: str | None = None
    ) -> tuple[Limit, ...]:
        """Return limits, by scope.

        Args:
            organization_id: Only those of this organisation and what is in it.
            project_id: Only those of this project and its keys.
        """
        wanted = select(LimitRow).order_by(LimitRow.scope, LimitRow.scope_id, LimitRow.model)
        if organization_id is not None:
            wanted = wanted.where(LimitRow.organization_id == organization_id)
        if project_id is not None:
            wanted = wanted.where(LimitRow.project_id == project_id)
        with self._database.read() as session:
            return tuple(record_of(row) for row in session.scalars(wanted))

    def remove(self, key: LimitKey) -> None:
        """Take a limit away.

        Raises:
            NotFound: There is none.
        """
        with self._database.write() as session:
            row = _find(session, key)
            if row is None:
                raise NotFound(f"the {key.scope} {key.scope_id!r} has no such limit")
            session.delete(row)


def _find(session: Session, key: LimitKey) -> LimitRow | None:
    return session.scalars(
        select(LimitRow).where(
            LimitRow.scope == key.scope.value,
            LimitRow.scope_id == key.scope_id,
            LimitRow.model == (key.model or ""),
        )
    ).one_or_none()


def _new(session: Session, key: LimitKey) -> LimitRow:
    _check_is_no_alias(session, key.scope_id if key.scope is LimitScope.MODEL else key.model)
    organization_id, project_id = _tenant(session, key)
    row = LimitRow(
        id=new_id("limit"),
        organization_id=organization_id,
        project_id=project_id,
        scope=key.scope.value,
        scope_id=key.scope_id,
        model=key.model or "",
    )
    for name in (*COUNTS, "monthly_budget"):
        setattr(row, name, None)
    session.add(row)
    return row


def _check_is_no_alias(session: Session, model: str | None) -> None:
    """Refuse a limit that would never count: requests count for what an alias stands for."""
    alias = session.get(AliasRow, model) if model else None
    if alias is not None:
        raise InvalidRequest(
            f"{model!r} is an alias; set the limit of {alias.model_id!r}", param="model"
        )


def _tenant(session: Session, key: LimitKey) -> tuple[str | None, str | None]:
    if key.scope is LimitScope.MODEL:
        if key.model is not None:
            raise InvalidRequest("the limit of a model is about that model alone", param="model")
        as_name(key.scope_id, "model")
        return None, None
    if key.scope is LimitScope.ORGANIZATION:
        if session.get(OrganizationRow, key.scope_id) is None:
            raise NotFound(f"no organisation has the id {key.scope_id!r}")
        return key.scope_id, None
    project_id = key.scope_id
    if key.scope is LimitScope.KEY:
        row = session.get(ApiKeyRow, key.scope_id)
        if row is None:
            raise NotFound(f"no API key has the id {key.scope_id!r}; list them with: maas key list")
        project_id = row.project_id
    project = session.get(ProjectRow, project_id)
    if project is None:
        raise NotFound(f"no project has the id {project_id!r}; list them with: maas project list")
    return project.organization_id, project_id
