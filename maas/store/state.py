"""The whole desired state in one read: what gateways route by."""

from dataclasses import replace
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.ids import new_id
from maas.store import (
    adapters,
    deployments,
    limits,
    organizations,
    projects,
    replicas,
    service_accounts,
    users,
)
from maas.store.database import Database
from maas.store.living_keys import LivingKeys
from maas.store.records import Alias, DesiredState, Priority
from maas.store.tables import AliasRow, DeploymentRow, ReplicaRow, RevisionRow
from maas.store.tenancy_tables import (
    LimitRow,
    OrganizationRow,
    ProjectMemberRow,
    ProjectRow,
    ServiceAccountRow,
    UserRow,
)

DEFAULT_PROJECT = "default"


class StateReader:
    """Reads desired state; cheap when nothing changed."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._living_keys = LivingKeys(clock)

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
                return replace(known, replicas=live)
            return DesiredState(
                revision=revision,
                keys=self._living_keys.read(session),
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
                tuned_models=adapters.names_of(session),
                **_tenancy(session),
            )

    def revision(self) -> int:
        """Return the counter of changes; cheaper than anything else here."""
        with self._database.read() as session:
            return session.scalars(select(RevisionRow.value)).one()


def _tenancy(session: Session) -> dict[str, Any]:
    living_users = select(UserRow).where(UserRow.deleted_at.is_(None))
    accounts = select(ServiceAccountRow).where(ServiceAccountRow.deleted_at.is_(None))
    return {
        "organizations": tuple(
            organizations.record_of(row) for row in session.scalars(select(OrganizationRow))
        ),
        "projects": tuple(projects.record_of(row) for row in session.scalars(select(ProjectRow))),
        "users": tuple(users.record_of(row) for row in session.scalars(living_users)),
        "members": tuple(users.member_of(row) for row in session.scalars(select(ProjectMemberRow))),
        "service_accounts": tuple(
            service_accounts.record_of(row) for row in session.scalars(accounts)
        ),
        "limits": tuple(limits.record_of(row) for row in session.scalars(select(LimitRow))),
    }


def ensure_project(database: Database, clock: Clock, name: str = DEFAULT_PROJECT) -> str:
    """Return the id of a project of the organisation ``default``, made where there is none."""
    with database.read() as session:
        found = session.scalars(_own_project(name)).one_or_none()
    if found is not None:
        return found
    with database.write() as session:
        organization = organizations.find_or_add(session, organizations.DEFAULT, clock.now())
        # Somebody else may have made it meanwhile, or it came with the organisation.
        found = session.scalars(_own_project(name)).one_or_none()
        if found is not None:
            return found
        row = ProjectRow(
            id=new_id("proj"),
            organization_id=organization.id,
            name=name,
            created_at=clock.now(),
            archived_at=None,
            weight=1,
            priority=Priority.ONLINE.value,
        )
        session.add(row)
        return row.id


def _own_project(name: str) -> Select[str]:
    return (
        select(ProjectRow.id)
        .join(OrganizationRow, OrganizationRow.id == ProjectRow.organization_id)
        .where(OrganizationRow.name == organizations.DEFAULT, ProjectRow.name == name)
    )
