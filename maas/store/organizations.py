"""Organisations: tenants. Each has a project ``default`` from its first moment."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import Conflict, NotFound
from maas.core.ids import new_id
from maas.store.database import Database
from maas.store.records import Organization, Priority
from maas.store.tenancy_tables import OrganizationRow, ProjectRow
from maas.store.text import as_name

DEFAULT = "default"


def record_of(row: OrganizationRow) -> Organization:
    """Return the row as a frozen record."""
    return Organization(row.id, row.name, row.created_at, row.archived_at)


def find_or_add(session: Session, name: str, now: float) -> OrganizationRow:
    """Return the organisation of this name, made with its first project where there is none."""
    row = session.scalars(select(OrganizationRow).where(OrganizationRow.name == name)).one_or_none()
    return row if row is not None else _add(session, name, now)


def _add(session: Session, name: str, now: float) -> OrganizationRow:
    row = OrganizationRow(id=new_id("org"), name=name, created_at=now, archived_at=None)
    session.add(row)
    session.flush()
    session.add(
        ProjectRow(
            id=new_id("proj"),
            organization_id=row.id,
            name=DEFAULT,
            created_at=now,
            archived_at=None,
            weight=1,
            priority=Priority.ONLINE.value,
        )
    )
    session.flush()
    return row


class OrganizationRepository:
    """Reads and writes organisations."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(self, name: str) -> Organization:
        """Make an organisation and its project ``default``.

        Raises:
            Conflict: There is one of this name.
            InvalidRequest: The name is empty.
        """
        with self._database.write() as session:
            taken = select(OrganizationRow.id).where(OrganizationRow.name == name)
            if session.scalars(taken).one_or_none() is not None:
                raise Conflict(f"an organisation is called {name!r} already", param="name")
            return record_of(_add(session, as_name(name), self._clock.now()))

    def list(self) -> tuple[Organization, ...]:
        """Return all organisations, archived ones too, oldest first."""
        with self._database.read() as session:
            rows = session.scalars(
                select(OrganizationRow).order_by(OrganizationRow.created_at, OrganizationRow.id)
            )
            return tuple(record_of(row) for row in rows)

    def find(self, named: str) -> Organization:
        """Return an organisation by its id or its name.

        Raises:
            NotFound: There is none.
        """
        with self._database.read() as session:
            row = (
                session.get(OrganizationRow, named)
                or session.scalars(
                    select(OrganizationRow).where(OrganizationRow.name == named)
                ).one_or_none()
            )
            if row is None:
                raise _missing(named)
            return record_of(row)

    def archive(self, organization_id: str) -> Organization:
        """Archive an organisation: from then on its keys are refused.

        Raises:
            NotFound: There is none with this id.
            Conflict: It is the platform's own, whose keys administer everything.
        """
        with self._database.write() as session:
            row = session.get(OrganizationRow, organization_id)
            if row is None:
                raise _missing(organization_id)
            if row.name == DEFAULT:
                raise Conflict("the organisation 'default' is the platform's own and stays")
            row.archived_at = row.archived_at or self._clock.now()
            return record_of(row)


def _missing(named: str) -> NotFound:
    return NotFound(f"no organisation is called {named!r}; list them with: maas org list")
