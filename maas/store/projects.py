"""Projects: what keys, limits, files and jobs belong to. The oldest of an organisation stays."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import Conflict, InvalidRequest, NotFound
from maas.core.ids import new_id
from maas.store.database import Database
from maas.store.pages import Page, Window, read_page
from maas.store.records import Priority, Project
from maas.store.tenancy_tables import OrganizationRow, ProjectRow
from maas.store.text import as_name

MAX_WEIGHT = 1000


@dataclass(frozen=True)
class ProjectChange:
    """What to change of a project; none leaves a thing as it is."""

    name: str | None = None
    weight: int | None = None
    priority: Priority | None = None


def record_of(row: ProjectRow) -> Project:
    """Return the row as a frozen record."""
    return Project(
        id=row.id,
        organization_id=row.organization_id,
        name=row.name,
        created_at=row.created_at,
        archived_at=row.archived_at,
        weight=row.weight,
        priority=Priority(row.priority),
    )


def _check_weight(weight: int) -> None:
    if not 1 <= weight <= MAX_WEIGHT:
        raise InvalidRequest(f"weight {weight}: want 1 to {MAX_WEIGHT}", param="weight")


def _check_name(session: Session, organization_id: str, name: str) -> None:
    as_name(name)
    taken = select(ProjectRow.id).where(
        ProjectRow.organization_id == organization_id, ProjectRow.name == name
    )
    if session.scalars(taken).one_or_none() is not None:
        raise Conflict(f"a project of this organisation is called {name!r} already", param="name")


def default_project(session: Session, organization_id: str) -> ProjectRow:
    """Return an organisation's first project."""
    return session.scalars(
        select(ProjectRow)
        .where(ProjectRow.organization_id == organization_id)
        .order_by(ProjectRow.created_at, ProjectRow.id)
        .limit(1)
    ).one()


class ProjectRepository:
    """Reads and writes projects."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(
        self,
        organization_id: str,
        name: str,
        *,
        weight: int = 1,
        priority: Priority = Priority.ONLINE,
    ) -> Project:
        """Make a project.

        Raises:
            NotFound: There is no such organisation, or it is archived.
            Conflict: There is a project of this name in it.
            InvalidRequest: The weight is out of range.
        """
        _check_weight(weight)
        with self._database.write() as session:
            organization = session.get(OrganizationRow, organization_id)
            if organization is None or organization.archived_at is not None:
                raise NotFound(f"no organisation has the id {organization_id!r}")
            _check_name(session, organization_id, name)
            row = ProjectRow(
                id=new_id("proj"),
                organization_id=organization_id,
                name=name,
                created_at=self._clock.now(),
                archived_at=None,
                weight=weight,
                priority=priority.value,
            )
            session.add(row)
        return record_of(row)

    def get(self, project_id: str) -> Project:
        """Return one project, archived or not.

        Raises:
            NotFound: There is none with this id.
        """
        with self._database.read() as session:
            return record_of(_get(session, project_id))

    def find(self, organization_id: str, named: str) -> Project:
        """Return a project of an organisation by its id or its name.

        Raises:
            NotFound: There is none.
        """
        with self._database.read() as session:
            row = session.scalars(
                select(ProjectRow).where(
                    ProjectRow.organization_id == organization_id,
                    (ProjectRow.id == named) | (ProjectRow.name == named),
                )
            ).first()
            if row is None:
                raise _missing(named)
            return record_of(row)

    def default_of(self, organization_id: str) -> Project:
        """Return an organisation's first project."""
        with self._database.read() as session:
            return record_of(default_project(session, organization_id))

    def list(
        self, organization_id: str | None, window: Window, *, with_archived: bool = False
    ) -> Page[Project]:
        """Return projects, oldest first.

        Args:
            organization_id: Whose; none returns those of all.
            window: The part of the list.
            with_archived: Whether archived ones are listed.
        """
        wanted = select(ProjectRow)
        if organization_id is not None:
            wanted = wanted.where(ProjectRow.organization_id == organization_id)
        if not with_archived:
            wanted = wanted.where(ProjectRow.archived_at.is_(None))
        with self._database.read() as session:
            order = (ProjectRow.created_at, ProjectRow.id)
            page = read_page(session, wanted, order=order, window=window)
            return Page(tuple(record_of(row) for row in page.items), page.has_more)

    def modify(self, project_id: str, change: ProjectChange) -> Project:
        """Change a project.

        Raises:
            NotFound: There is none with this id.
            Conflict: It is archived, or the name is taken.
            InvalidRequest: The weight is out of range.
        """
        with self._database.write() as session:
            row = _get(session, project_id)
            if row.archived_at is not None:
                raise Conflict(f"the project {project_id!r} is archived")
            if change.name is not None and change.name != row.name:
                _check_name(session, row.organization_id, change.name)
                row.name = change.name
            if change.weight is not None:
                _check_weight(change.weight)
                row.weight = change.weight
            if change.priority is not None:
                row.priority = change.priority.value
        return record_of(row)

    def archive(self, project_id: str) -> Project:
        """Archive a project: from then on its keys are refused.

        Raises:
            NotFound: There is none with this id.
            Conflict: It is its organisation's first project.
        """
        with self._database.write() as session:
            row = _get(session, project_id)
            if default_project(session, row.organization_id).id == project_id:
                raise Conflict(f"the project {row.name!r} is its organisation's first and stays")
            row.archived_at = row.archived_at or self._clock.now()
        return record_of(row)


def _get(session: Session, project_id: str) -> ProjectRow:
    row = session.get(ProjectRow, project_id)
    if row is None:
        raise _missing(project_id)
    return row


def _missing(named: str) -> NotFound:
    return NotFound(f"no project is called {named!r}; list them with: maas project list")
