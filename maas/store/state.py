"""The whole desired state in one read: what gateways route by."""

from sqlalchemy import select

from maas.core.clock import Clock
from maas.core.ids import new_id
from maas.store import deployments, keys, replicas
from maas.store.database import Database
from maas.store.records import Alias, DesiredState
from maas.store.tables import (
    AliasRow,
    ApiKeyRow,
    DeploymentRow,
    ProjectRow,
    ReplicaRow,
    RevisionRow,
)

DEFAULT_PROJECT = "default"


class StateReader:
    """Reads desired state; cheap when nothing changed."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def read(self, known: DesiredState | None = None) -> DesiredState:
        """Return the state as it is now.

        Args:
            known: What the caller already holds; everything but the leases is taken from it
                when the revision has not moved.
        """
        with self._database.read() as session:
            revision = session.scalars(select(RevisionRow.value)).one()
            live = tuple(
                replicas.record_of(row)
                for row in session.scalars(
                    select(ReplicaRow)
                    .where(ReplicaRow.expires_at > self._clock.now())
                    .order_by(ReplicaRow.id)
                )
            )
            if known is not None and known.revision == revision:
                return DesiredState(revision, known.keys, known.deployments, known.aliases, live)
            return DesiredState(
                revision=revision,
                keys=tuple(keys.record_of(row) for row in session.scalars(select(ApiKeyRow))),
                deployments=tuple(
                    deployments.record_of(row)
                    for row in session.scalars(
                        select(DeploymentRow).where(DeploymentRow.deleted_at.is_(None))
                    )
                ),
                aliases=tuple(
                    Alias(row.name, row.model_id) for row in session.scalars(select(AliasRow))
                ),
                replicas=live,
            )


def ensure_project(database: Database, clock: Clock, name: str = DEFAULT_PROJECT) -> str:
    """Return the id of the project of this name, making it where there is none."""
    with database.write() as session:
        row = session.scalars(select(ProjectRow).where(ProjectRow.name == name)).one_or_none()
        if row is None:
            row = ProjectRow(id=new_id("proj"), name=name, created_at=clock.now())
            session.add(row)
        return row.id
