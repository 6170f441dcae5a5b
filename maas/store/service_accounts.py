"""Service accounts: programs that have keys of a project."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import NotFound
from maas.core.ids import new_id
from maas.store.database import Database
from maas.store.keys import revoke_keys_of
from maas.store.pages import Page, Window, read_page
from maas.store.records import Role, ServiceAccount
from maas.store.tenancy_tables import ApiKeyRow, ServiceAccountRow
from maas.store.text import as_name


def record_of(row: ServiceAccountRow) -> ServiceAccount:
    """Return the row as a frozen record."""
    return ServiceAccount(
        id=row.id,
        project_id=row.project_id,
        name=row.name,
        role=Role(row.role),
        created_at=row.created_at,
        deleted_at=row.deleted_at,
    )


class ServiceAccountRepository:
    """Reads and writes service accounts."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(self, project_id: str, *, name: str, role: Role) -> ServiceAccount:
        """Make a service account; its key is made by ``KeyRepository``.

        Raises:
            InvalidRequest: It cannot be called so.
        """
        row = ServiceAccountRow(
            id=new_id("svc"),
            project_id=project_id,
            name=as_name(name),
            role=role.value,
            created_at=self._clock.now(),
            deleted_at=None,
        )
        with self._database.write() as session:
            session.add(row)
        return record_of(row)

    def get(self, project_id: str, account_id: str) -> ServiceAccount:
        """Return a service account of a project.

        Raises:
            NotFound: There is none with this id.
        """
        with self._database.read() as session:
            return record_of(_get(session, project_id, account_id))

    def list(self, project_id: str, window: Window) -> Page[ServiceAccount]:
        """Return the service accounts of a project, oldest first."""
        wanted = select(ServiceAccountRow).where(
            ServiceAccountRow.project_id == project_id, ServiceAccountRow.deleted_at.is_(None)
        )
        with self._database.read() as session:
            order = (ServiceAccountRow.created_at, ServiceAccountRow.id)
            page = read_page(session, wanted, order=order, window=window)
            return Page(tuple(record_of(row) for row in page.items), page.has_more)

    def delete(self, project_id: str, account_id: str) -> None:
        """Remove a service account and revoke its keys.

        Raises:
            NotFound: There is none with this id.
        """
        with self._database.write() as session:
            row = _get(session, project_id, account_id)
            row.deleted_at = now = self._clock.now()
            revoke_keys_of(session, ApiKeyRow.service_account_id == account_id, now)


def _get(session: Session, project_id: str, account_id: str) -> ServiceAccountRow:
    row = session.get(ServiceAccountRow, account_id)
    if row is None or row.project_id != project_id or row.deleted_at is not None:
        raise NotFound(f"the project has no service account {account_id!r}")
    return row
