"""Uploads: files that come in parts."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import and_, exists, func, or_, select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import Conflict, InvalidRequest, NotFound
from maas.core.ids import new_id
from maas.store.database import Database
from maas.store.finetune_tables import UploadPartRow, UploadRow
from maas.store.text import as_name

LIFETIME_S = 3600.0
MAX_PARTS = 10_000
PENDING, COMPLETED, CANCELLED, EXPIRED = "pending", "completed", "cancelled", "expired"


@dataclass(frozen=True)
class Upload:
    """A file on its way.

    Attributes:
        size_bytes: As declared; the parts must sum up to it.
        file_id: What became of it.
    """

    id: str
    project_id: str
    filename: str
    purpose: str
    mime_type: str
    size_bytes: int
    status: str
    created_at: float
    expires_at: float
    file_lifetime_s: int | None
    file_id: str | None


@dataclass(frozen=True)
class UploadPart:
    """One part; its bytes are a blob."""

    id: str
    upload_id: str
    size_bytes: int
    sha256: str
    blob_key: str
    created_at: float


class UploadRepository:
    """Reads and writes uploads."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(
        self,
        project_id: str,
        *,
        filename: str,
        purpose: str,
        mime_type: str,
        size_bytes: int,
        file_lifetime_s: int | None,
    ) -> Upload:
        """Begin an upload; it must be complete within the hour."""
        now = self._clock.now()
        row = UploadRow(
            id=new_id("upload"),
            project_id=project_id,
            filename=as_name(filename, "filename"),
            purpose=purpose,
            mime_type=mime_type,
            size_bytes=size_bytes,
            status=PENDING,
            created_at=now,
            expires_at=now + LIFETIME_S,
            file_lifetime_s=file_lifetime_s,
            file_id=None,
        )
        with self._database.write(bump_revision=False) as session:
            session.add(row)
        return record_of(row)

    def get(self, project_id: str, upload_id: str) -> Upload:
        """Return a project's upload.

        Raises:
            NotFound: It has none with this id.
        """
        with self._database.read() as session:
            return record_of(_of_project(session, project_id, upload_id))

    def add_part(self, project_id: str, part: UploadPart) -> UploadPart:
        """Write down a part whose bytes are stored.

        Raises:
            NotFound: The project has no such upload.
            Conflict: It is over, or its time is.
            InvalidRequest: With this part it is larger than declared.
        """
        with self._database.write(bump_revision=False) as session:
            upload = self._pending(session, project_id, part.upload_id)
            num_parts, total = session.execute(
                select(func.count(), func.coalesce(func.sum(UploadPartRow.size_bytes), 0)).where(
                    UploadPartRow.upload_id == upload.id
                )
            ).one()
            if num_parts >= MAX_PARTS:
                raise InvalidRequest(f"an upload has at most {MAX_PARTS} parts", param="data")
            if total + part.size_bytes > upload.size_bytes:
                raise InvalidRequest(
                    f"{total + part.size_bytes} bytes are more than the {upload.size_bytes} "
                    "that the upload was made for",
                    param="data",
                )
            fields = {name: getattr(part, name) for name in UploadPart.__dataclass_fields__}
            session.add(UploadPartRow(**(fields | {"created_at": self._clock.now()})))
        return part

    def parts(self, project_id: str, upload_id: str, part_ids: list[str]) -> list[UploadPart]:
        """Return the parts of an upload that is pending, in the order that is asked for.

        Raises:
            NotFound: The project has no such upload.
            Conflict: It is over, or its time is.
            InvalidRequest: A part is not there or there twice, or they are not the whole file.
        """
        with self._database.read() as session:
            upload = self._pending(session, project_id, upload_id)
            known = {row.id: row for row in _parts_of(session, upload.id)}
            if len(set(part_ids)) < len(part_ids):
                raise InvalidRequest("a part is named twice", param="part_ids")
            missing = [part_id for part_id in part_ids if part_id not in known]
            if missing:
                raise InvalidRequest(f"{missing[0]!r} is no part of it", param="part_ids")
            parts = [_part_of(known[part_id]) for part_id in part_ids]
            total = sum(part.size_bytes for part in parts)
            if total != upload.size_bytes:
                raise InvalidRequest(
                    f"the parts have {total} bytes, the upload was made for {upload.size_bytes}",
                    param="part_ids",
                )
            return parts

    def finish(self, project_id: str, upload_id: str, *, file_id: str | None) -> Upload:
        """Complete an upload with its file, or cancel it without one.

        Raises:
            NotFound: The project has no such upload.
            Conflict: It is over, or its time is.
        """
        with self._database.write(bump_revision=False) as session:
            row = self._pending(session, project_id, upload_id)
            row.status = CANCELLED if file_id is None else COMPLETED
            row.file_id = file_id
            return record_of(row)

    def over(self, limit: int) -> list[str]:
        """Return uploads that are over, or whose time is, and that still have parts or wait."""
        has_parts = exists().where(UploadPartRow.upload_id == UploadRow.id)
        is_late = UploadRow.expires_at <= self._clock.now()
        with self._database.read() as session:
            found = select(UploadRow.id).where(
                or_(
                    and_(UploadRow.status != PENDING, has_parts),
                    and_(UploadRow.status == PENDING, is_late),
                )
            )
            return list(session.scalars(found.limit(limit)))

    def forget_parts(self, upload_id: str) -> None:
        """Remove the rows of an upload's parts, whose bytes are removed; expire it if pending."""
        with self._database.write(bump_revision=False) as session:
            for row in _parts_of(session, upload_id):
                session.delete(row)
            upload = session.get(UploadRow, upload_id)
            if upload is not None and upload.status == PENDING:
                upload.status = EXPIRED

    def known_parts(self, part_ids: Collection[str]) -> set[str]:
        """Return which of these parts have a row."""
        with self._database.read() as session:
            found = select(UploadPartRow.id).where(UploadPartRow.id.in_([*part_ids]))
            return set(session.scalars(found))

    def _pending(self, session: Session, project_id: str, upload_id: str) -> UploadRow:
        row = _of_project(session, project_id, upload_id)
        status = record_of(row).status
        if status == PENDING and row.expires_at <= self._clock.now():
            status = EXPIRED
        if status != PENDING:
            raise Conflict(f"the upload {upload_id} is {status}")
        return row


def record_of(row: UploadRow) -> Upload:
    """Return the row as a frozen record."""
    return Upload(**{name: getattr(row, name) for name in Upload.__dataclass_fields__})


def _part_of(row: UploadPartRow) -> UploadPart:
    return UploadPart(**{name: getattr(row, name) for name in UploadPart.__dataclass_fields__})


def _parts_of(session: Session, upload_id: str) -> list[UploadPartRow]:
    return list(session.scalars(select(UploadPartRow).where(UploadPartRow.upload_id == upload_id)))


def _of_project(session: Session, project_id: str, upload_id: str) -> UploadRow:
    row = session.get(UploadRow, upload_id)
    if row is None or row.project_id != project_id:
        raise NotFound(f"no upload has the id {upload_id!r}")
    return row
