"""Exports: what was asked for, and what their runners tell.

As with jobs, an export has one runner at a time. A runner begins by taking the export
(``take``), which moves ``attempt`` on; whatever it writes names its attempt, and what an earlier
one writes is refused with ``Superseded``. What makes it end is one transaction with its bundle.
"""

import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import Conflict, NotFound, Superseded
from maas.core.ids import new_id
from maas.store.database import Database
from maas.store.edge_tables import BundleRow, ExportEventRow, ExportRow
from maas.store.export_records import (
    OVER,
    Export,
    ExportEvent,
    ExportStatus,
    MadeBundle,
    NewExport,
    event_of,
    export_of,
)
from maas.store.pages import Page, Window, read_page
from maas.store.text import as_text
from maas.store.webhooks import enqueue_for_project

_MAX_MESSAGE, _MAX_KEY = 4096, 255
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_TICK_S = 1e-5
# Runners say every second that they live; one that is not heard of for longer may be dead.
_MAX_UNSEEN_S = 5.0
_OVER = [status.value for status in OVER]


class ExportRepository:
    """Reads and writes exports."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(self, new: NewExport) -> Export:
        """Write down that a bundle should be made."""
        row = ExportRow(
            id=new_id("export"),
            project_id=new.project_id,
            key_id=new.key_id,
            request_id=new.request_id,
            created_at=self._clock.now(),
            model_id=new.model_id,
            base_model_id=new.base_model_id,
            name=new.name,
            target=new.target,
            precision=new.precision,
            adapter_mode=new.adapter_mode,
            adapters=dict(new.adapters),
            shrink=None if new.shrink is None else dict(new.shrink),
            quality=dict(new.quality),
            labels=dict(new.labels),
            estimate=dict(new.estimate),
            status=ExportStatus.QUEUED.value,
            attempt=0,
            used_s=0.0,
            num_failures=0,
        )
        with self._database.write(bump_revision=False) as session:
            session.add(row)
            session.flush()
            self._tell(session, row, "created", f"Created export: {row.id}")
            return export_of(row)

    def get(self, project_id: str, export_id: str) -> Export:
        """Return a project's export.

        Raises:
            NotFound: It has none with this id.
        """
        with self._database.read() as session:
            return export_of(_of_project(session, project_id, export_id))

    def list(self, project_id: str, window: Window) -> Page[Export]:
        """Return a page of a project's exports."""
        wanted = select(ExportRow).where(ExportRow.project_id == project_id)
        with self._database.read() as session:
            order = (ExportRow.created_at, ExportRow.id)
            page = read_page(session, wanted, order=order, window=window)
            return Page(tuple(export_of(row) for row in page.items), page.has_more)

    def events(self, project_id: str, export_id: str, window: Window) -> Page[ExportEvent]:
        """Return a page of what an export told.

        Raises:
            NotFound: The project has no such export.
        """
        wanted = select(ExportEventRow).where(ExportEventRow.export_id == export_id)
        with self._database.read() as session:
            _of_project(session, project_id, export_id)
            order = (ExportEventRow.created_at, ExportEventRow.id)
            page = read_page(session, wanted, order=order, window=window)
            return Page(tuple(event_of(row) for row in page.items), page.has_more)

    def unfinished(self) -> tuple[Export, ...]:
        """Return all exports that are not over, of every project, oldest first."""
        wanted = select(ExportRow).where(ExportRow.status.not_in(_OVER))
        with self._database.read() as session:
            rows = session.scalars(wanted.order_by(ExportRow.created_at, ExportRow.id))
            return tuple(export_of(row) for row in rows)

    def is_current(self, export_id: str, attempt: int) -> bool | None:
        """Return whether an attempt is the newest at an export that is not over.

        None where there is no such export.
        """
        with self._database.read() as session:
            row = session.get(ExportRow, export_id)
            return None if row is None else row.attempt == attempt and row.status not in _OVER

    def count_unfinished(self, project_id: str) -> int:
        """Return how many of a project's exports are not over."""
        wanted = select(func.count()).select_from(ExportRow)
        with self._database.read() as session:
            return session.scalars(
                wanted.where(ExportRow.project_id == project_id, ExportRow.status.not_in(_OVER))
            ).one()

    def cancel(self, project_id: str, export_id: str) -> Export:
        """End an export now; its runner's next write is refused. Doing so twice is fine.

        Raises:
            NotFound: The project has no such export.
            Conflict: It succeeded or failed.
        """
        with self._database.write(bump_revision=False) as session:
            row = _of_project(session, project_id, export_id)
            if row.status in {ExportStatus.SUCCEEDED.value, ExportStatus.FAILED.value}:
                raise Conflict(f"export {export_id} is {row.status}: it cannot be cancelled")
            if row.status != ExportStatus.CANCELLED.value:
                row.attempt += 1
                self._end(session, row, ExportStatus.CANCELLED)
            return export_of(row)

    def wait(self, export_id: str, attempt: int, reason: str) -> None:
        """Tell why an export waits for its turn, once for each reason.

        Args:
            export_id: Which.
            attempt: Its newest.
            reason: Numbers in it may change from pass to pass: it stays the same reason.

        Raises:
            Superseded: Somebody took it, or it is over.
        """
        key = f"waiting:{_NUMBER.sub('#', reason)}"[:_MAX_KEY]
        with self._database.read() as session:
            known = select(ExportEventRow.id).where(
                ExportEventRow.export_id == export_id, ExportEventRow.key == key
            )
            if session.scalars(known).first() is not None:
                return
        with self._database.write(bump_revision=False) as session:
            self._tell(session, _of_attempt(session, export_id, attempt), key, reason)

    def take(self, export_id: str, *, seen_attempt: int) -> Export:
        """Take an export for a new runner.

        Args:
            export_id: Which.
            seen_attempt: Its attempt when it was decided that it needs one.

        Raises:
            Superseded: Somebody else took it since, or it is over.
        """
        with self._database.write(bump_revision=False) as session:
            row = _of_attempt(session, export_id, seen_attempt)
            row.attempt += 1
            row.status = ExportStatus.RUNNING.value
            row.runner_seen_at = now = self._clock.now()
            # What an attempt took that came to nothing is nobody's to pay.
            row.used_s = 0.0
            row.started_at = row.started_at or now
            self._tell(session, row, "started", "Export started")
            return export_of(row)

    def write(
        self, export_id: str, attempt: int, progress: Mapping[str, Any] | None = None
    ) -> Export:
        """Write that a runner lives, and how far it is; each phase is told once.

        Raises:
            Superseded: The export is not this runner's any more.
        """
        with self._database.write(bump_revision=False) as session:
            row = _of_attempt(session, export_id, attempt)
            row.used_s += self._worked_s(row)
            row.runner_seen_at = self._clock.now()
            if progress is not None:
                row.progress = dict(progress)
                phase = str(progress["phase"])
                self._tell(session, row, f"phase:{phase}", str(progress.get("message") or phase))
            return export_of(row)

    def succeed(self, export_id: str, attempt: int, made: MadeBundle) -> Export:
        """End an export with its bundle, both or neither.

        Raises:
            Superseded: The export is not this runner's any more.
            Conflict: Another project has this very bundle.
        """
        with self._database.write(bump_revision=False) as session:
            row = _of_attempt(session, export_id, attempt)
            known = session.get(BundleRow, made.id)
            if known is not None and known.project_id != row.project_id:
                raise Conflict(f"bundle {made.id} is another project's")
            if known is None:
                session.add(
                    BundleRow(
                        id=made.id,
                        project_id=row.project_id,
                        name=made.name,
                        model_id=row.model_id,
                        blob_key=made.blob_key,
                        size_bytes=made.size_bytes,
                        manifest=dict(made.manifest),
                        created_at=self._clock.now(),
                    )
                )
                session.flush()
            else:
                # The same bytes were deleted, and are wanted again.
                known.blob_key, known.deleted_at = made.blob_key, None
            row.bundle_id = made.id
            self._end(session, row, ExportStatus.SUCCEEDED)
            return export_of(row)

    def fail(self, export_id: str, attempt: int, error: Mapping[str, Any]) -> Export:
        """End an export that trying again does not mend.

        Raises:
            Superseded: The export is not this runner's any more.
        """
        with self._database.write(bump_revision=False) as session:
            row = _of_attempt(session, export_id, attempt)
            row.error = dict(error)
            self._end(session, row, ExportStatus.FAILED)
            return export_of(row)

    def failed_once(self, export_id: str, attempt: int, *, retry_at: float, reason: str) -> Export:
        """Count a runner that ended without an outcome; the next one begins later.

        Raises:
            Superseded: The export is not that runner's any more.
        """
        with self._database.write(bump_revision=False) as session:
            row = _of_attempt(session, export_id, attempt)
            row.status = ExportStatus.QUEUED.value
            row.used_s = 0.0
            row.num_failures += 1
            row.retry_at = retry_at
            row.runner_seen_at = None
            message = f"The export's process ended: {reason}; it begins again"
            self._tell(session, row, f"ended:{attempt}", message, level="warn")
            return export_of(row)

    def _worked_s(self, row: ExportRow) -> float:
        """Return how long a runner worked since it was seen; silence is not work."""
        if row.runner_seen_at is None:
            return 0.0
        return min(max(self._clock.now() - row.runner_seen_at, 0.0), _MAX_UNSEEN_S)

    def _end(self, session: Session, row: ExportRow, status: ExportStatus) -> None:
        row.status = status.value
        row.finished_at = now = self._clock.now()
        row.used_s += self._worked_s(row)
        row.retry_at = row.runner_seen_at = None
        reason = (row.error or {}).get("message", "no reason was given")
        level, message = {
            ExportStatus.SUCCEEDED: ("info", f"The bundle is made: {row.bundle_id}"),
            ExportStatus.CANCELLED: ("warn", "The export was cancelled"),
        }.get(status, ("error", f"The export failed: {reason}"))
        self._tell(session, row, "terminal", message, level=level)
        enqueue_for_project(
            session, row.project_id, f"export.{status.value}", {"id": row.id}, now=now
        )

    def _tell(
        self, session: Session, row: ExportRow, key: str, message: str, *, level: str = "info"
    ) -> None:
        """Write an event, unless its key was told before."""
        told = select(ExportEventRow.id).where(
            ExportEventRow.export_id == row.id, ExportEventRow.key == key
        )
        if session.scalars(told).first() is not None:
            return
        newest = session.scalars(
            select(func.max(ExportEventRow.created_at)).where(ExportEventRow.export_id == row.id)
        ).one()
        session.add(
            ExportEventRow(
                id=new_id("exevent"),
                export_id=row.id,
                key=key,
                # What is told at once keeps its order.
                created_at=max(self._clock.now(), (newest or 0.0) + _TICK_S),
                level=level,
                message=as_text(message)[:_MAX_MESSAGE],
            )
        )
        session.flush()


def _of_project(session: Session, project_id: str, export_id: str) -> ExportRow:
    row = session.get(ExportRow, export_id)
    if row is None or row.project_id != project_id:
        raise NotFound(f"no export has the id {export_id!r}")
    return row


def _of_attempt(session: Session, export_id: str, attempt: int) -> ExportRow:
    row = session.get(ExportRow, export_id)
    if row is None or row.attempt != attempt or row.status in _OVER:
        raise Superseded(f"attempt {attempt} at export {export_id} is not the newest any more")
    return row
