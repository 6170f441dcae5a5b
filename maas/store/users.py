"""People of an organisation and their roles in its projects."""

import re

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import Conflict, InvalidRequest, NotFound
from maas.core.ids import new_id
from maas.store.database import Database
from maas.store.keys import revoke_keys_of
from maas.store.pages import Page, Window, read_page
from maas.store.records import ProjectMember, Role, User
from maas.store.tenancy_tables import ApiKeyRow, ProjectMemberRow, ProjectRow, UserRow
from maas.store.text import as_name

_ADDRESS = re.compile(r"[^@\s]+@[^@\s]+")


def record_of(row: UserRow) -> User:
    """Return the row as a frozen record."""
    return User(
        id=row.id,
        organization_id=row.organization_id,
        email=row.email,
        name=row.name,
        role=Role(row.role),
        created_at=row.created_at,
        deleted_at=row.deleted_at,
    )


def member_of(row: ProjectMemberRow) -> ProjectMember:
    """Return the row as a frozen record."""
    return ProjectMember(row.project_id, row.user_id, Role(row.role), row.created_at)


class UserRepository:
    """Reads and writes users and their memberships."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(self, organization_id: str, *, email: str, name: str, role: Role) -> User:
        """Add a person to an organisation.

        Raises:
            Conflict: Somebody of this e-mail address is in it.
            InvalidRequest: It is no e-mail address, or the name is empty.
        """
        with self._database.write() as session:
            if session.scalars(_by_email(organization_id, email)).one_or_none() is not None:
                raise Conflict(f"the organisation has a user {email!r} already", param="email")
            row = UserRow(
                id=new_id("user"),
                organization_id=organization_id,
                email=_address(email),
                name=as_name(name),
                role=role.value,
                created_at=self._clock.now(),
                deleted_at=None,
            )
            session.add(row)
        return record_of(row)

    def get(self, organization_id: str, user_id: str) -> User:
        """Return a user of an organisation.

        Raises:
            NotFound: There is none with this id.
        """
        with self._database.read() as session:
            return record_of(_get(session, organization_id, user_id))

    def find_by_email(self, organization_id: str, email: str) -> User:
        """Return a user of an organisation.

        Raises:
            NotFound: There is none with this address.
        """
        with self._database.read() as session:
            row = session.scalars(_by_email(organization_id, email)).one_or_none()
            if row is None:
                raise NotFound(f"the organisation has no user {email!r}")
            return record_of(row)

    def list(self, organization_id: str, window: Window) -> Page[User]:
        """Return the users of an organisation, oldest first."""
        wanted = select(UserRow).where(
            UserRow.organization_id == organization_id, UserRow.deleted_at.is_(None)
        )
        with self._database.read() as session:
            order = (UserRow.created_at, UserRow.id)
            page = read_page(session, wanted, order=order, window=window)
            return Page(tuple(record_of(row) for row in page.items), page.has_more)

    def modify(self, organization_id: str, user_id: str, role: Role) -> User:
        """Change a user's role in the organisation.

        Raises:
            NotFound: There is none with this id.
        """
        with self._database.write() as session:
            row = _get(session, organization_id, user_id)
            row.role = role.value
        return record_of(row)

    def delete(self, organization_id: str, user_id: str) -> None:
        """Remove a user, with the memberships, and revoke the user's keys.

        Raises:
            NotFound: There is none with this id.
        """
        with self._database.write() as session:
            row = _get(session, organization_id, user_id)
            row.deleted_at = now = self._clock.now()
            for member in session.scalars(
                select(ProjectMemberRow).where(ProjectMemberRow.user_id == user_id)
            ):
                session.delete(member)
            revoke_keys_of(session, ApiKeyRow.user_id == user_id, now)

    def add_member(self, project_id: str, user_id: str, role: Role) -> ProjectMember:
        """Give a user a role in a project.

        Raises:
            NotFound: The project's organisation has no such user.
            Conflict: The user is in the project already.
        """
        with self._database.write() as session:
            _get(session, session.get_one(ProjectRow, project_id).organization_id, user_id)
            if session.get(ProjectMemberRow, (project_id, user_id)) is not None:
                raise Conflict(f"the user {user_id!r} is in the project already")
            row = ProjectMemberRow(
                project_id=project_id,
                user_id=user_id,
                role=role.value,
                created_at=self._clock.now(),
            )
            session.add(row)
        return member_of(row)

    def get_member(self, project_id: str, user_id: str) -> tuple[User, ProjectMember]:
        """Return a user of a project.

        Raises:
            NotFound: There is none with this id.
        """
        with self._database.read() as session:
            member = _member(session, project_id, user_id)
            return record_of(session.get_one(UserRow, user_id)), member_of(member)

    def list_members(self, project_id: str, window: Window) -> Page[tuple[User, ProjectMember]]:
        """Return the users of a project, by when they joined the organisation."""
        wanted = (
            select(UserRow)
            .join(ProjectMemberRow, ProjectMemberRow.user_id == UserRow.id)
            .where(ProjectMemberRow.project_id == project_id)
        )
        with self._database.read() as session:
            order = (UserRow.created_at, UserRow.id)
            page = read_page(session, wanted, order=order, window=window)
            pairs = (
                (record_of(row), member_of(_member(session, project_id, row.id)))
                for row in page.items
            )
            return Page(tuple(pairs), page.has_more)

    def modify_member(self, project_id: str, user_id: str, role: Role) -> ProjectMember:
        """Change a user's role in a project.

        Raises:
            NotFound: The user is not in the project.
        """
        with self._database.write() as session:
            row = _member(session, project_id, user_id)
            row.role = role.value
        return member_of(row)

    def remove_member(self, project_id: str, user_id: str) -> None:
        """Take a user out of a project and revoke the user's keys of it.

        Raises:
            NotFound: The user is not in the project.
        """
        with self._database.write() as session:
            session.delete(_member(session, project_id, user_id))
            owned = (ApiKeyRow.user_id == user_id) & (ApiKeyRow.project_id == project_id)
            revoke_keys_of(session, owned, self._clock.now())


def _by_email(organization_id: str, email: str) -> Select[UserRow]:
    return select(UserRow).where(
        UserRow.organization_id == organization_id,
        UserRow.email == email,
        UserRow.deleted_at.is_(None),
    )


def _get(session: Session, organization_id: str, user_id: str) -> UserRow:
    row = session.get(UserRow, user_id)
    if row is None or row.organization_id != organization_id or row.deleted_at is not None:
        raise NotFound(f"no user has the id {user_id!r}")
    return row


def _member(session: Session, project_id: str, user_id: str) -> ProjectMemberRow:
    row = session.get(ProjectMemberRow, (project_id, user_id))
    if row is None:
        raise NotFound(f"the project has no user {user_id!r}")
    return row


def _address(email: str) -> str:
    if _ADDRESS.fullmatch(email) is None:
        raise InvalidRequest(f"{email!r} is not an e-mail address", param="email")
    return as_name(email, "email")
