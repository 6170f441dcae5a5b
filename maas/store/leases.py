"""Named leases: which controller leads, which gateways are alive and what they have seen."""

from sqlalchemy import delete, func, select

from maas.core.clock import Clock
from maas.store.database import Database
from maas.store.tables import LeaseRow, RevisionRow

GATEWAY_PREFIX = "gateway/"


class LeaseRepository:
    """Reads and writes named leases."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def acquire(self, name: str, holder: str, *, ttl_s: float, revision: int = 0) -> bool:
        """Take or renew a lease.

        Returns:
            False where somebody else holds it and it has not run out.
        """
        now = self._clock.now()
        with self._database.write(bump_revision=False) as session:
            row = session.get(LeaseRow, name, with_for_update=True)
            if row is not None and row.holder != holder and row.expires_at > now:
                return False
            session.merge(
                LeaseRow(name=name, holder=holder, revision=revision, expires_at=now + ttl_s)
            )
        return True

    def release(self, name: str, holder: str) -> None:
        """Give a lease back; a lease held by somebody else is left alone."""
        with self._database.write(bump_revision=False) as session:
            session.execute(
                delete(LeaseRow).where(LeaseRow.name == name, LeaseRow.holder == holder)
            )

    def count_gateways(self) -> int:
        """Return how many gateways are alive."""
        with self._database.read() as session:
            live = select(func.count()).where(
                LeaseRow.name.startswith(GATEWAY_PREFIX),
                LeaseRow.expires_at > self._clock.now(),
            )
            return session.scalar(live) or 0

    def are_gateways_current(self) -> bool:
        """Say whether every live gateway has seen the newest revision."""
        with self._database.read() as session:
            newest = session.scalars(select(RevisionRow.value)).one()
            seen = session.scalars(
                select(LeaseRow.revision).where(
                    LeaseRow.name.startswith(GATEWAY_PREFIX),
                    LeaseRow.expires_at > self._clock.now(),
                )
            )
            return all(revision >= newest for revision in seen)
