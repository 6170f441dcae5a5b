"""Replica leases: published by whoever runs an engine, read by gateways and the controller."""

from sqlalchemy import delete, select

from maas.core.clock import Clock
from maas.store.database import Database
from maas.store.records import Replica, ReplicaState
from maas.store.tables import DeploymentRow, ReplicaRow

# Engines listen on loopback; others are somebody else's, reached from everywhere.
_LOCAL = "http://127.0.0.1:"


def record_of(row: ReplicaRow) -> Replica:
    """Return the row as a frozen record."""
    return Replica(
        id=row.id,
        deployment_id=row.deployment_id,
        url=row.url,
        engine_model=row.engine_model,
        state=ReplicaState(row.state),
        started_at=row.started_at,
        expires_at=row.expires_at,
        adapters=tuple(row.adapters),
        num_running=row.num_running,
        num_waiting=row.num_waiting,
        kv_cache_usage=row.kv_cache_usage,
        memory_bytes=row.memory_bytes,
        max_num_seqs=row.max_num_seqs,
    )


class ReplicaRepository:
    """Reads and writes leases. Nothing here moves the revision: gateways read leases each time."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def publish(self, replica: Replica) -> bool:
        """Write a lease as it is now.

        Returns:
            False where the deployment is gone: its replica should stop.
        """
        with self._database.write(bump_revision=False) as session:
            if session.get(DeploymentRow, replica.deployment_id) is None:
                return False
            session.merge(
                ReplicaRow(
                    id=replica.id,
                    deployment_id=replica.deployment_id,
                    url=replica.url,
                    engine_model=replica.engine_model,
                    adapters=list(replica.adapters),
                    state=replica.state.value,
                    num_running=replica.num_running,
                    num_waiting=replica.num_waiting,
                    kv_cache_usage=replica.kv_cache_usage,
                    memory_bytes=replica.memory_bytes,
                    max_num_seqs=replica.max_num_seqs,
                    started_at=replica.started_at,
                    expires_at=replica.expires_at,
                )
            )
        return True

    def withdraw(self, replica_id: str) -> None:
        """Take a lease back; doing so twice is fine."""
        with self._database.write(bump_revision=False) as session:
            session.execute(delete(ReplicaRow).where(ReplicaRow.id == replica_id))

    def clear_local(self) -> None:
        """Take back the leases of this machine's engines: for a start that knows they are gone."""
        with self._database.write(bump_revision=False) as session:
            session.execute(delete(ReplicaRow).where(ReplicaRow.url.startswith(_LOCAL)))

    def live(self) -> tuple[Replica, ...]:
        """Return the leases that have not run out, oldest first."""
        with self._database.read() as session:
            rows = session.scalars(
                select(ReplicaRow)
                .where(ReplicaRow.expires_at > self._clock.now())
                .order_by(ReplicaRow.started_at)
            )
            return tuple(record_of(row) for row in rows)

    def sweep(self) -> int:
        """Remove leases that ran out and return how many there were."""
        with self._database.write(bump_revision=False) as session:
            result = session.execute(
                delete(ReplicaRow)
                .where(ReplicaRow.expires_at <= self._clock.now())
                .returning(ReplicaRow.id)
            )
            return len(result.all())
