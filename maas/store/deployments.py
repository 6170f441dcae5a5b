"""Deployments: what should run, written by people, and what was seen, written by the controller."""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import ConfigError, NotFound
from maas.core.ids import new_id
from maas.store.database import Database
from maas.store.records import Deployment, DeploymentStatus
from maas.store.tables import DeploymentRow, ReplicaRow
from maas.store.text import as_text

MAX_REPLICAS = 1024


def record_of(row: DeploymentRow) -> Deployment:
    """Return the row as a frozen record."""
    return Deployment(
        id=row.id,
        project_id=row.project_id,
        model_id=row.model_id,
        engine=row.engine,
        options=dict(row.options),
        min_replicas=row.min_replicas,
        max_replicas=row.max_replicas,
        created_at=row.created_at,
        deleted_at=row.deleted_at,
        status=DeploymentStatus(row.status),
        reason=row.reason,
        num_failures=row.num_failures,
        retry_at=row.retry_at,
    )


def check_bounds(min_replicas: int, max_replicas: int) -> None:
    """Check how many replicas are asked for.

    Raises:
        ConfigError: The bounds make no sense.
    """
    if not 1 <= min_replicas <= max_replicas <= MAX_REPLICAS:
        raise ConfigError(
            f"replicas {min_replicas}..{max_replicas}: want 1 <= min <= max <= {MAX_REPLICAS}"
        )


class DeploymentRepository:
    """Reads and writes deployments."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(
        self,
        *,
        project_id: str,
        model_id: str,
        engine: str,
        options: Mapping[str, Any],
        min_replicas: int = 1,
        max_replicas: int = 1,
    ) -> Deployment:
        """Write down that a model should run.

        Raises:
            ConfigError: The replica bounds make no sense.
        """
        check_bounds(min_replicas, max_replicas)
        row = DeploymentRow(
            id=new_id("dep"),
            project_id=project_id,
            model_id=model_id,
            engine=engine,
            options=dict(options),
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            created_at=self._clock.now(),
            deleted_at=None,
            status=DeploymentStatus.PENDING.value,
            reason=None,
            num_failures=0,
            retry_at=None,
        )
        with self._database.write() as session:
            session.add(row)
        return record_of(row)

    def list(self) -> tuple[Deployment, ...]:
        """Return all deployments that are not gone, oldest first (those on their way out too)."""
        with self._database.read() as session:
            rows = session.scalars(select(DeploymentRow).order_by(DeploymentRow.created_at))
            return tuple(record_of(row) for row in rows)

    def get(self, deployment_id: str) -> Deployment:
        """Return one deployment.

        Raises:
            NotFound: There is none with this id.
        """
        with self._database.read() as session:
            row = session.get(DeploymentRow, deployment_id)
            if row is None:
                raise _missing(deployment_id)
            return record_of(row)

    def scale(self, deployment_id: str, *, min_replicas: int, max_replicas: int) -> Deployment:
        """Change how many replicas should run; a failed deployment is tried again at once.

        Raises:
            NotFound: There is none with this id.
            ConfigError: The bounds make no sense.
        """
        check_bounds(min_replicas, max_replicas)
        with self._database.write() as session:
            row = session.get(DeploymentRow, deployment_id)
            if row is None or row.deleted_at is not None:
                raise _missing(deployment_id)
            row.min_replicas, row.max_replicas = min_replicas, max_replicas
            row.status, row.reason = DeploymentStatus.PENDING.value, None
            row.num_failures, row.retry_at = 0, None
        return record_of(row)

    def delete(self, deployment_id: str) -> None:
        """Write down that a deployment should go; the controller drains and forgets it.

        Raises:
            NotFound: There is none with this id.
        """
        with self._database.write() as session:
            row = session.get(DeploymentRow, deployment_id)
            if row is None:
                raise _missing(deployment_id)
            row.deleted_at = row.deleted_at or self._clock.now()
            row.status = DeploymentStatus.DELETING.value

    def observe(
        self,
        deployment_id: str,
        *,
        status: DeploymentStatus,
        reason: str | None,
        seen_failures: int,
        is_forgiven: bool = False,
    ) -> bool:
        """Write down what the controller saw. Moves no revision: nobody routes by it.

        One conditional statement, as replicas write their failures into the same row: what was
        seen before the latest failure must undo neither its count nor its reason.

        Args:
            deployment_id: Which one.
            status: What was seen.
            reason: Why, in words.
            seen_failures: Failures in a row when the controller looked.
            is_forgiven: Whether they are over; the next failure counts as the first.

        Returns:
            False where nothing was written: a replica failed meanwhile, or the deployment is on
            its way out and keeps saying so.
        """
        values: dict[str, Any] = {"num_failures": 0} if is_forgiven else {}
        statement = (
            update(DeploymentRow)
            .where(
                DeploymentRow.id == deployment_id,
                DeploymentRow.deleted_at.is_(None),
                DeploymentRow.num_failures == seen_failures,
            )
            .values(
                status=status.value,
                reason=reason and as_text(reason)[:4096],
                retry_at=None,
                **values,
            )
            .returning(DeploymentRow.id)
        )
        with self._database.write(bump_revision=False) as session:
            return session.scalar(statement) is not None

    def postpone(
        self, deployment_id: str, *, status: DeploymentStatus, reason: str, retry_at: float
    ) -> None:
        """Write down that nothing is started before ``retry_at``; failures stay as counted."""
        with self._database.write(bump_revision=False) as session:
            session.execute(
                update(DeploymentRow)
                .where(DeploymentRow.id == deployment_id, DeploymentRow.deleted_at.is_(None))
                .values(status=status.value, reason=as_text(reason)[:4096], retry_at=retry_at)
            )

    def record_failure(self, deployment_id: str, reason: str) -> int:
        """Write down that a replica failed.

        Returns:
            Failures in a row; what paces the next start.
        """
        statement = (
            update(DeploymentRow)
            .where(DeploymentRow.id == deployment_id)
            # The database adds: two replicas that fail at once are two failures.
            .values(num_failures=DeploymentRow.num_failures + 1, reason=as_text(reason)[:4096])
            .returning(DeploymentRow.num_failures)
        )
        with self._database.write(bump_revision=False) as session:
            return session.scalar(statement) or 0

    def try_again(self) -> None:
        """Forget what kept deployments from running: for a start that judges all anew."""
        stopped = (DeploymentStatus.REFUSED.value, DeploymentStatus.FAILED.value)
        with self._database.write(bump_revision=False) as session:
            session.execute(
                update(DeploymentRow)
                .where(DeploymentRow.deleted_at.is_(None), DeploymentRow.status.in_(stopped))
                .values(
                    status=DeploymentStatus.PENDING.value,
                    reason=None,
                    num_failures=0,
                    retry_at=None,
                )
            )

    def forget(self, deployment_id: str) -> None:
        """Remove a deployment that has stopped, with its leases."""
        with self._database.write() as session:
            row = session.get(DeploymentRow, deployment_id)
            for replica in session.scalars(
                select(ReplicaRow).where(ReplicaRow.deployment_id == deployment_id)
            ):
                session.delete(replica)
            session.flush()
            if row is not None:
                session.delete(row)


def stop_models(session: Session, model_ids: Collection[str], *, now: float) -> None:
    """Write down, as part of a transaction, that the deployments of some models should go."""
    rows = session.scalars(
        select(DeploymentRow).where(
            DeploymentRow.model_id.in_(model_ids), DeploymentRow.deleted_at.is_(None)
        )
    )
    for row in rows:
        row.deleted_at, row.status = now, DeploymentStatus.DELETING.value


def _missing(deployment_id: str) -> NotFound:
    return NotFound(f"no deployment has the id {deployment_id!r}; list them with: maas deploy list")
