"""What files cost while they are kept: one charge a project and day of UTC, written once.

A day is charged as a whole, all projects in one transaction, when it is over: whoever dies writes
all of it or nothing, and whoever comes later charges the days that are missing. A file counts from
its creation to its deletion or expiry, to the second; a project's sum is rounded up to a whole
mebibyte-hour. The price is that of the model ``storage`` when the day is charged.
"""

from datetime import UTC, datetime

from sqlalchemy import and_, case, func, select

from maas.core.clock import Clock
from maas.ledger.books import Books
from maas.ledger.entries import Entry, Payer
from maas.ledger.holds import Work
from maas.ledger.prices import Quantity
from maas.ledger.tariff import Tariff
from maas.store.database import Database
from maas.store.finetune_tables import FileRow
from maas.store.ledger_tables import JournalRow
from maas.store.tenancy_tables import ProjectRow

STORAGE = "storage"
ENDPOINT = "/v1/files"
DAY_S = 86_400
# A file that is being written down at midnight has its row by then.
_SETTLED_AFTER_S = 600.0
_MIB_SECONDS = (1 << 20) * 3600


class StorageLedger:
    """Charges for files.

    Args:
        database: Where files and the journal are.
        clock: Says which days are over.
        books: The ledger.
        tariff: Prices.
    """

    def __init__(self, database: Database, clock: Clock, books: Books, tariff: Tariff) -> None:
        self._database = database
        self._clock = clock
        self._books = books
        self._tariff = tariff
        self._next_day: int | None = None

    def charge_due(self) -> int:
        """Charge the days that are over; return how many charges were new."""
        today = int((self._clock.now() - _SETTLED_AFTER_S) // DAY_S)
        day = self._first_due()
        if day is None:
            return 0
        num_new = 0
        while day < today:
            num_new += self._books.charge(self._entries(day))
            day += 1
            self._next_day = day
        return num_new

    def _first_due(self) -> int | None:
        """Return the first day that may not be charged yet; none where nothing was ever kept."""
        if self._next_day is not None:
            return self._next_day
        with self._database.read() as session:
            charged = session.scalar(
                select(JournalRow.at)
                .where(JournalRow.endpoint == ENDPOINT, JournalRow.model_id == STORAGE)
                .order_by(JournalRow.at.desc())
                .limit(1)
            )
            if charged is not None:
                return int(charged // DAY_S) + 1
            oldest = session.scalar(select(func.min(FileRow.created_at)))
        return None if oldest is None else int(oldest // DAY_S)

    def _entries(self, day: int) -> list[Entry]:
        at, date = float(day * DAY_S), datetime.fromtimestamp(day * DAY_S, UTC).date()
        price = self._tariff.in_force().price_of(STORAGE)
        entries: list[Entry] = []
        for project_id, organization_id, byte_seconds in self._kept(day):
            used = Quantity(storage_mib_hours=-int(-byte_seconds // _MIB_SECONDS))
            work = Work(f"storage:{project_id}:{date}", f"storage-{date}", ENDPOINT, STORAGE)
            entries.append(work.charge(Payer(organization_id, project_id, ""), used, price, at))
        return entries

    def _kept(self, day: int) -> list[tuple[str, str, float]]:
        """Return project, organisation and byte-seconds of those that kept something that day."""
        first, end = float(day * DAY_S), float((day + 1) * DAY_S)
        gone = func.coalesce(FileRow.deleted_at, FileRow.expires_at, end)
        since = case((FileRow.created_at > first, FileRow.created_at), else_=first)
        until = case((gone < end, gone), else_=end)
        kept = func.sum(FileRow.size_bytes * (until - since))
        statement = (
            select(FileRow.project_id, ProjectRow.organization_id, kept)
            .join(ProjectRow, ProjectRow.id == FileRow.project_id)
            .where(and_(FileRow.created_at < end, gone > first))
            .group_by(FileRow.project_id, ProjectRow.organization_id)
        )
        with self._database.read() as session:
            return [
                (project_id, organization_id, float(byte_seconds))
                for project_id, organization_id, byte_seconds in session.execute(statement)
            ]
