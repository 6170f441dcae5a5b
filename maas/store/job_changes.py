"""How a job's row changes, as part of a transaction: its status, its events, who hears of it."""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from maas.core.ids import new_id
from maas.store.adapters import withdraw_candidates
from maas.store.finetune_tables import JobEventRow, JobRow
from maas.store.job_records import TERMINAL, JobChange, JobStatus, JobWish, Telling
from maas.store.text import as_text
from maas.store.webhooks import enqueue_for_project

MAX_MESSAGE = 4096
_TICK_S = 1e-5
_WRITTEN = (
    *("report", "resolved", "estimate", "progress", "estimated_finish", "error"),
    *("fine_tuned_model", "trained_tokens", "retry_at"),
)


def apply(session: Session, row: JobRow, change: JobChange, *, now: float) -> None:
    """Write what a runner tells; what ends the job is told to its organisation's webhooks."""
    for telling in change.tellings:
        tell(session, row, telling, now=now)
    for name in _WRITTEN:
        value: Any = getattr(change, name)
        if value is not None:
            setattr(row, name, value)
    if change.result_files is not None:
        row.result_files = [*change.result_files]
    if change.is_released:
        row.runner_seen_at = None
    if change.progress is not None:
        # It moves: what failed before is forgiven.
        row.num_failures = 0
    status = change.status
    if status in {JobStatus.QUEUED, JobStatus.PAUSED}:
        # A runner that stops knows the wish of a moment ago; somebody may have another by now.
        status = JobStatus.PAUSED if row.wish == JobWish.PAUSE.value else JobStatus.QUEUED
    if status is JobStatus.PAUSED:
        pause(session, row, now=now)
    elif status is not None and status.value != row.status:
        _move(session, row, status, now=now)


def pause(session: Session, row: JobRow, *, now: float) -> None:
    """Let a job rest: it has no runner until it is resumed."""
    row.status = JobStatus.PAUSED.value
    row.wish = row.retry_at = row.runner_seen_at = row.estimated_finish = None
    tell(session, row, Telling(f"paused:{row.attempt}", "Job paused"), now=now)


def tell(session: Session, row: JobRow, telling: Telling, *, now: float) -> None:
    """Write an event, unless its key was told before."""
    known = select(JobEventRow.id).where(
        JobEventRow.job_id == row.id, JobEventRow.key == telling.key
    )
    if session.scalars(known).first() is not None:
        return
    newest = session.scalars(
        select(func.max(JobEventRow.created_at)).where(JobEventRow.job_id == row.id)
    ).one()
    session.add(
        JobEventRow(
            id=new_id("ftevent"),
            job_id=row.id,
            key=telling.key,
            # What is told at once keeps its order.
            created_at=max(now, (newest or 0.0) + _TICK_S),
            level=telling.level,
            message=as_text(telling.message)[:MAX_MESSAGE],
            type=telling.type,
            data=None if telling.data is None else dict(telling.data),
        )
    )
    session.flush()


def _move(session: Session, row: JobRow, status: JobStatus, *, now: float) -> None:
    row.status = status.value
    if status is JobStatus.RUNNING and row.started_at is None:
        row.started_at = now
    if status not in TERMINAL:
        return
    row.finished_at = now
    row.wish = row.retry_at = row.runner_seen_at = row.estimated_finish = None
    if status is not JobStatus.SUCCEEDED:
        withdraw_candidates(session, row.id, now=now)
    tell(session, row, _ending(row, status), now=now)
    event = f"fine_tuning.job.{status.value}"
    enqueue_for_project(session, row.project_id, event, {"id": row.id}, now=now)


def _ending(row: JobRow, status: JobStatus) -> Telling:
    if status is JobStatus.SUCCEEDED:
        return Telling("terminal", "The job has successfully completed")
    if status is JobStatus.CANCELLED:
        return Telling("terminal", "The job was cancelled", "warn")
    reason = (row.error or {}).get("message", "no reason was given")
    return Telling("terminal", f"The job failed: {reason}", "error")
