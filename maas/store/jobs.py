"""Fine-tuning jobs: what was asked for, what was wished since, what their runners tell.

A job has one runner at a time. Each runner begins by taking the job (``take``), which moves
``attempt`` on; whatever it writes names its attempt, and what an earlier one writes is refused
with ``Superseded``. So a runner that was thought dead and is not changes nothing.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select, String, cast, func, select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import Conflict, NotFound, Superseded
from maas.core.ids import new_id
from maas.store.database import Database
from maas.store.finetune_tables import CheckpointRow, JobEventRow, JobRow, TunedModelRow
from maas.store.job_changes import apply, pause, tell
from maas.store.job_records import (
    ACTIVE,
    TERMINAL,
    Job,
    JobChange,
    JobCheckpoint,
    JobEvent,
    JobStatus,
    JobWish,
    NewJob,
    Telling,
    checkpoint_of,
    event_of,
    record_of,
)
from maas.store.pages import Page, Window, read_page


class JobRepository:
    """Reads and writes jobs."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(self, new: NewJob) -> Job:
        """Write down that a job should run."""
        row = JobRow(
            id=new_id("ftjob"),
            project_id=new.project_id,
            key_id=new.key_id,
            request_id=new.request_id,
            created_at=self._clock.now(),
            model_id=new.model_id,
            base_model_id=new.base_model_id,
            training_file=new.training_file,
            validation_file=new.validation_file,
            suffix=new.suffix,
            seed=new.seed,
            method=dict(new.method),
            recipe=new.recipe,
            labels=dict(new.labels),
            status=JobStatus.VALIDATING_FILES.value,
            attempt=0,
            num_failures=0,
            num_restarts=0,
            result_files=[],
        )
        with self._database.write(bump_revision=False) as session:
            session.add(row)
            session.flush()
            tell(
                session,
                row,
                Telling("created", f"Created fine-tuning job: {row.id}"),
                now=self._clock.now(),
            )
            file = f"Validating training file: {row.training_file}"
            tell(session, row, Telling("validating", file), now=self._clock.now())
            return record_of(row)

    def get(self, project_id: str, job_id: str) -> Job:
        """Return a project's job.

        Raises:
            NotFound: It has none with this id.
        """
        with self._database.read() as session:
            return record_of(_of_project(session, project_id, job_id))

    def events(self, project_id: str, job_id: str, window: Window) -> Page[JobEvent]:
        """Return a page of what a job told.

        Raises:
            NotFound: The project has no such job.
        """
        with self._database.read() as session:
            _of_project(session, project_id, job_id)
            page = read_page(
                session,
                select(JobEventRow).where(JobEventRow.job_id == job_id),
                order=(JobEventRow.created_at, JobEventRow.id),
                window=window,
            )
            return Page(tuple(event_of(row) for row in page.items), page.has_more)

    def checkpoints(self, project_id: str, job_id: str, window: Window) -> Page[JobCheckpoint]:
        """Return a page of a job's checkpoints.

        Raises:
            NotFound: The project has no such job.
        """
        with self._database.read() as session:
            _of_project(session, project_id, job_id)
            page = read_page(
                session,
                select(CheckpointRow).where(CheckpointRow.job_id == job_id),
                order=(CheckpointRow.created_at, CheckpointRow.id),
                window=window,
            )
            return Page(tuple(checkpoint_of(row) for row in page.items), page.has_more)

    def pause(self, project_id: str, job_id: str) -> Job:
        """Ask for a pause: at once where nothing is trained yet, else after a checkpoint.

        Raises:
            NotFound: The project has no such job.
            Conflict: It is over.
        """
        with self._database.write(bump_revision=False) as session:
            row = _of_project(session, project_id, job_id)
            _check_not_over(row, "paused")
            if row.status == JobStatus.RUNNING.value and row.runner_seen_at is not None:
                row.wish = JobWish.PAUSE.value
            elif row.status != JobStatus.PAUSED.value:
                # Nothing is lost: the next runner begins where this one did.
                row.attempt += 1
                pause(session, row, now=self._clock.now())
            return record_of(row)

    def resume(self, project_id: str, job_id: str) -> Job:
        """Go on with a job that is paused, or about to be.

        Raises:
            NotFound: The project has no such job.
            Conflict: It is over, or is not paused.
        """
        with self._database.write(bump_revision=False) as session:
            row = _of_project(session, project_id, job_id)
            _check_not_over(row, "resumed")
            if row.wish == JobWish.PAUSE.value:
                row.wish = None
            elif row.status == JobStatus.PAUSED.value:
                is_checked = row.report is not None
                status = JobStatus.QUEUED if is_checked else JobStatus.VALIDATING_FILES
                row.status = status.value
                tell(
                    session,
                    row,
                    Telling(f"resumed:{row.attempt}", "Job resumed"),
                    now=self._clock.now(),
                )
            else:
                raise Conflict(f"job {job_id} is {row.status}: only a paused one can be resumed")
            return record_of(row)

    def cancel(self, project_id: str, job_id: str) -> Job:
        """End a job now. Its runner's next write is refused, and it stops.

        Doing so twice is fine.

        Raises:
            NotFound: The project has no such job.
            Conflict: It succeeded or failed.
        """
        with self._database.write(bump_revision=False) as session:
            row = _of_project(session, project_id, job_id)
            if row.status == JobStatus.CANCELLED.value:
                return record_of(row)
            _check_not_over(row, "cancelled")
            row.attempt += 1
            tokens = int((row.progress or {}).get("trained_tokens", 0))
            ending = JobChange(status=JobStatus.CANCELLED, trained_tokens=tokens)
            apply(session, row, ending, now=self._clock.now())
            return record_of(row)

    def unfinished(self) -> tuple[Job, ...]:
        """Return all jobs that are not over, of every project, oldest first."""
        over = [status.value for status in TERMINAL]
        with self._database.read() as session:
            rows = session.scalars(
                select(JobRow).where(JobRow.status.not_in(over)).order_by(JobRow.created_at)
            )
            return tuple(record_of(row) for row in rows)

    def count_unfinished(self, project_id: str) -> int:
        """Return how many of a project's jobs are not over."""
        over = [status.value for status in TERMINAL]
        with self._database.read() as session:
            return session.scalars(
                select(func.count())
                .select_from(JobRow)
                .where(JobRow.project_id == project_id, JobRow.status.not_in(over))
            ).one()

    def find(self, job_id: str) -> Job | None:
        """Return a job of whatever project."""
        with self._database.read() as session:
            row = session.get(JobRow, job_id)
            return None if row is None else record_of(row)

    def take(self, job_id: str, *, seen_attempt: int) -> Job:
        """Take a job for a new runner.

        Args:
            job_id: Which.
            seen_attempt: Its attempt when it was decided that it needs one.

        Raises:
            Superseded: Somebody else took it since, or it needs no runner any more.
        """
        with self._database.write(bump_revision=False) as session:
            row = _of_attempt(session, job_id, seen_attempt)
            if JobStatus(row.status) not in ACTIVE:
                raise Superseded(f"job {job_id} is {row.status}")
            row.attempt += 1
            # What ended the one before says nothing of this one.
            row.wish = row.error = None
            row.runner_seen_at = self._clock.now()
            return record_of(row)

    def ask(self, job_id: str, attempt: int, wish: JobWish) -> None:
        """Ask a runner for something; an earlier wish of a person stands."""
        with self._database.write(bump_revision=False) as session:
            row = session.get(JobRow, job_id)
            if row is not None and row.attempt == attempt and row.wish is None:
                row.wish = wish.value

    def write(self, job_id: str, attempt: int, change: JobChange | None = None) -> Job:
        """Write what a runner tells, and that it lives.

        Returns:
            The job after it: ``wish`` says what to do next.

        Raises:
            Superseded: The job is not this runner's any more.
        """
        with self._database.write(bump_revision=False) as session:
            row = _of_attempt(session, job_id, attempt)
            row.runner_seen_at = self._clock.now()
            apply(session, row, change or JobChange(), now=self._clock.now())
            return record_of(row)

    def add_checkpoint(
        self,
        job_id: str,
        attempt: int,
        *,
        step: int,
        metrics: Mapping[str, Any],
        model_id: str,
        keep: int,
    ) -> None:
        """Write down a checkpoint, once, and forget all but the newest ones with their models.

        Args:
            job_id: Which job.
            attempt: This runner's.
            step: After which step.
            metrics: What was measured.
            model_id: The name it answers under.
            keep: How many are kept.

        Raises:
            Superseded: The job is not this runner's any more.
        """
        with self._database.write() as session:
            row = _of_attempt(session, job_id, attempt)
            rows = list(session.scalars(_checkpoints_of(job_id)))
            if any(known.step == step for known in rows):
                return
            created = CheckpointRow(
                id=new_id("ftckpt"),
                job_id=job_id,
                step=step,
                metrics=dict(metrics),
                model_id=model_id,
                created_at=self._clock.now(),
            )
            session.add(created)
            told = Telling(f"checkpoint:{step}", f"Checkpoint created at step {step}")
            tell(session, row, told, now=self._clock.now())
            for old in [*rows, created][:-keep]:
                model = session.get(TunedModelRow, old.model_id)
                if model is not None:
                    model.deleted_at = self._clock.now()
                session.delete(old)

    def kept_checkpoints(self, job_id: str) -> tuple[JobCheckpoint, ...]:
        """Return a job's checkpoints, oldest first, of whatever project."""
        with self._database.read() as session:
            return tuple(checkpoint_of(row) for row in session.scalars(_checkpoints_of(job_id)))

    def metrics(self, job_id: str) -> list[dict[str, Any]]:
        """Return what was measured at each step of a job, in order."""
        told = select(JobEventRow.data).where(
            JobEventRow.job_id == job_id, JobEventRow.type == "metrics"
        )
        by_step: dict[int, dict[str, Any]] = {}
        with self._database.read() as session:
            for data in session.scalars(told):
                if data is not None:
                    by_step.setdefault(int(data["step"]), {}).update(data)
        return [by_step[step] for step in sorted(by_step)]

    def wait(self, job_id: str, attempt: int, reason: str) -> None:
        """Tell why a job waits for its turn, once for each reason."""
        with self._database.read() as session:
            known = select(JobEventRow.id).where(
                JobEventRow.job_id == job_id, JobEventRow.key == f"waiting:{reason}"[:255]
            )
            if session.scalars(known).first() is not None:
                return
        with self._database.write(bump_revision=False) as session:
            row = _of_attempt(session, job_id, attempt)
            told = Telling(f"waiting:{reason}"[:255], reason)
            tell(session, row, told, now=self._clock.now())

    def failed_once(self, job_id: str, attempt: int, *, retry_at: float | None, reason: str) -> Job:
        """Count a runner that ended without an outcome.

        Args:
            job_id: Which job.
            attempt: That runner's.
            retry_at: When the next one begins; none where it was the last.
            reason: Why it ended.

        Raises:
            Superseded: The job is not that runner's any more, or it said goodbye meanwhile.
        """
        with self._database.write(bump_revision=False) as session:
            row = _of_attempt(session, job_id, attempt)
            if row.runner_seen_at is None:
                raise Superseded(f"attempt {attempt} at job {job_id} left as it should")
            row.num_failures += 1
            row.num_restarts += 1
            row.retry_at = retry_at
            row.runner_seen_at = None
            message = f"The trainer ended: {reason}"
            if retry_at is not None:
                message += "; going on from the last checkpoint"
            now = self._clock.now()
            tell(session, row, Telling(f"ended:{attempt}", message, "warn"), now=now)
            if row.wish == JobWish.PAUSE.value:
                # Its runner died before it heard of it.
                pause(session, row, now=now)
            return record_of(row)

    def list(
        self, project_id: str, window: Window, labels: Mapping[str, str] | None = None
    ) -> Page[Job]:
        """Return a page of a project's jobs.

        Args:
            project_id: Whose.
            window: Which part of the list.
            labels: Only jobs that have all of these; an empty mapping, only those without any.
        """
        wanted = select(JobRow).where(JobRow.project_id == project_id)
        if labels is not None and not labels:
            wanted = wanted.where(cast(JobRow.labels, String) == "{}")
        for name, value in (labels or {}).items():
            wanted = wanted.where(JobRow.labels[name].as_string() == value)
        with self._database.read() as session:
            page = read_page(session, wanted, order=(JobRow.created_at, JobRow.id), window=window)
            return Page(tuple(record_of(row) for row in page.items), page.has_more)


def _of_project(session: Session, project_id: str, job_id: str) -> JobRow:
    row = session.get(JobRow, job_id)
    if row is None or row.project_id != project_id:
        raise NotFound(f"no fine-tuning job has the id {job_id!r}")
    return row


def _of_attempt(session: Session, job_id: str, attempt: int) -> JobRow:
    row = session.get(JobRow, job_id)
    if row is None or row.attempt != attempt or JobStatus(row.status) in TERMINAL:
        raise Superseded(f"attempt {attempt} at job {job_id} is not the newest any more")
    return row


def _checkpoints_of(job_id: str) -> Select[CheckpointRow]:
    return select(CheckpointRow).where(CheckpointRow.job_id == job_id).order_by(CheckpointRow.step)


def _check_not_over(row: JobRow, what: str) -> None:
    if JobStatus(row.status) in TERMINAL:
        raise Conflict(f"job {row.id} is {row.status}: it cannot be {what}")
