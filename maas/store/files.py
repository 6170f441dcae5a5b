"""Files: what was uploaded, and what jobs hand back."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import NotFound
from maas.core.ids import new_id
from maas.store.database import Database
from maas.store.finetune_tables import FileRow
from maas.store.pages import Page, Window, read_page
from maas.store.text import as_name

PROCESSED = "processed"


@dataclass(frozen=True)
class StoredFile:
    """A file of a project; its bytes are the blob ``blob_key``, empty once they are gone."""

    id: str
    project_id: str
    filename: str
    purpose: str
    size_bytes: int
    sha256: str
    blob_key: str
    status: str
    status_details: str | None
    created_at: float
    expires_at: float | None
    deleted_at: float | None


@dataclass(frozen=True)
class NewFile:
    """A file whose bytes are stored already, under ``files/<id>``."""

    id: str
    project_id: str
    filename: str
    purpose: str
    size_bytes: int
    sha256: str
    expires_after_s: int | None = None


def new_file_id() -> str:
    """Return the id of a file that will be."""
    return new_id("file")


def blob_key_of(file_id: str) -> str:
    """Return where a file's bytes are."""
    return f"files/{file_id}"


class FileRepository:
    """Reads and writes files."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(self, new: NewFile) -> StoredFile:
        """Write down a file whose bytes are stored.

        Raises:
            InvalidRequest: Its name is empty, or would steer who reads it.
        """
        now = self._clock.now()
        row = FileRow(
            id=new.id,
            project_id=new.project_id,
            filename=as_name(new.filename, "filename"),
            purpose=new.purpose,
            size_bytes=new.size_bytes,
            sha256=new.sha256,
            blob_key=blob_key_of(new.id),
            status=PROCESSED,
            status_details=None,
            created_at=now,
            expires_at=None if new.expires_after_s is None else now + new.expires_after_s,
            deleted_at=None,
        )
        with self._database.write(bump_revision=False) as session:
            session.add(row)
        return record_of(row)

    def get(self, project_id: str, file_id: str) -> StoredFile:
        """Return a project's file.

        Raises:
            NotFound: It has none with this id, or it has expired.
        """
        with self._database.read() as session:
            return record_of(self._living(session, project_id, file_id))

    def find(self, file_id: str) -> StoredFile | None:
        """Return a file of whatever project, deleted and expired ones too."""
        with self._database.read() as session:
            row = session.get(FileRow, file_id)
            return None if row is None else record_of(row)

    def delete(self, project_id: str, file_id: str) -> None:
        """Take a file away; its bytes go with the next sweep.

        Raises:
            NotFound: The project has none with this id.
        """
        with self._database.write(bump_revision=False) as session:
            self._living(session, project_id, file_id).deleted_at = self._clock.now()

    def gone(self, limit: int) -> tuple[StoredFile, ...]:
        """Return files that are deleted or expired and whose bytes are still kept."""
        with self._database.read() as session:
            rows = session.scalars(
                select(FileRow)
                .where(
                    FileRow.blob_key != "",
                    or_(FileRow.deleted_at.is_not(None), FileRow.expires_at <= self._clock.now()),
                )
                .limit(limit)
            )
            return tuple(record_of(row) for row in rows)

    def mark_removed(self, file_id: str) -> None:
        """Write down that a file's bytes are removed; doing so twice is fine.

        The row stays: what a model was trained on, and what its storage cost, can still be said.
        """
        with self._database.write(bump_revision=False) as session:
            row = session.get_one(FileRow, file_id)
            row.blob_key = ""
            if row.deleted_at is None:
                row.deleted_at = row.expires_at

    def kept(self, file_ids: Collection[str]) -> set[str]:
        """Return which of these files have a row that says that their bytes are kept."""
        with self._database.read() as session:
            return set(
                session.scalars(
                    select(FileRow.id).where(FileRow.id.in_([*file_ids]), FileRow.blob_key != "")
                )
            )

    def list(self, project_id: str, window: Window, purpose: str | None = None) -> Page[StoredFile]:
        """Return a page of a project's files."""
        wanted = select(FileRow).where(
            FileRow.project_id == project_id,
            FileRow.deleted_at.is_(None),
            or_(FileRow.expires_at.is_(None), FileRow.expires_at > self._clock.now()),
        )
        if purpose is not None:
            wanted = wanted.where(FileRow.purpose == purpose)
        with self._database.read() as session:
            page = read_page(session, wanted, order=(FileRow.created_at, FileRow.id), window=window)
            return Page(tuple(record_of(row) for row in page.items), page.has_more)

    def _living(self, session: Session, project_id: str, file_id: str) -> FileRow:
        row = session.get(FileRow, file_id)
        is_ours = row is not None and row.project_id == project_id and row.deleted_at is None
        if row is None or not is_ours or (row.expires_at or float("inf")) <= self._clock.now():
            raise NotFound(f"no file has the id {file_id!r}")
        return row


def record_of(row: FileRow) -> StoredFile:
    """Return the row as a frozen record."""
    return StoredFile(**{name: getattr(row, name) for name in StoredFile.__dataclass_fields__})
