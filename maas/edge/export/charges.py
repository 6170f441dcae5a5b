"""What exports cost: held when one is asked for, charged once when it ends.

The price is that of a second of work (``export_second`` of the base). What an export can cost at
most is held in the transaction that writes it down; ending it, charging it and giving back what is
left are one transaction too, so it is charged once whoever dies. It pays for the seconds that its
last runner was seen alive, never more than was held; who fails pays nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from maas.core.clock import Clock
from maas.edge.export.estimate import Seconds
from maas.ledger.books import Books
from maas.ledger.entries import Entry
from maas.ledger.holds import Holds, Work
from maas.ledger.prices import Quantity
from maas.ledger.tariff import DEFAULT_TIER, Tariff
from maas.store.database import Database
from maas.store.export_records import Export, ExportStatus, MadeBundle, NewExport
from maas.store.exports import ExportRepository

ENDPOINT = "/v1/exports"
_PAYS = frozenset({ExportStatus.SUCCEEDED, ExportStatus.CANCELLED})


class ExportLedger:
    """Begins and ends exports with their money.

    Args:
        database: The store: what must happen together is one transaction of it.
        clock: Decides the window an export counts in: that of its hold.
        books: The ledger.
        tariff: Prices.
    """

    def __init__(self, database: Database, clock: Clock, books: Books, tariff: Tariff) -> None:
        self._database = database
        self._clock = clock
        self._exports = ExportRepository(database, clock)
        self._books = books
        self._holds = Holds(database, books)
        self._tariff = tariff

    def create(self, new: NewExport, seconds: Seconds) -> Export:
        """Write an export down and hold what it can cost, both or neither.

        Raises:
            BudgetExceeded: A budget has less left.
            Unavailable: It has enough, but others hold it for requests just now.
        """
        quote, most = self._quote(new.base_model_id, seconds)
        with self._database.together():
            export = self._exports.create(replace(new, estimate={**new.estimate, **quote}))
            self._holds.hold(
                _spender_of(export),
                self._holds.payer_of(new.project_id, new.key_id),
                new.base_model_id,
                cost=most,
                at=quote["priced_at"],
                what="the export",
            )
            return export

    def succeed(self, export_id: str, attempt: int, made: MadeBundle) -> Export:
        """End an export with its bundle, and charge it.

        Raises:
            Superseded: The export is not this runner's any more.
        """
        with self._database.together():
            return self._settled(self._exports.succeed(export_id, attempt, made))

    def fail(self, export_id: str, attempt: int, error: Mapping[str, Any]) -> Export:
        """End an export that trying again does not mend; it costs nothing.

        Raises:
            Superseded: The export is not this runner's any more.
        """
        with self._database.together():
            return self._settled(self._exports.fail(export_id, attempt, error))

    def cancel(self, project_id: str, export_id: str) -> Export:
        """End an export now and charge what was worked; doing so twice is fine.

        Raises:
            NotFound: The project has no such export.
            Conflict: It succeeded or failed.
        """
        with self._database.together():
            return self._settled(self._exports.cancel(project_id, export_id))

    def _quote(self, model_id: str, seconds: Seconds) -> tuple[dict[str, Any], Decimal]:
        price, now = self._tariff.in_force().price_of(model_id, DEFAULT_TIER), self._clock.now()
        likely, most = (
            price.cost(Quantity(export_milliseconds=_milliseconds(value)), now)
            for value in (seconds.likely, seconds.most)
        )
        quote = {
            "seconds": seconds.likely,
            "max_seconds": seconds.most,
            "price_id": price.id,
            "currency": price.currency,
            "cost": str(likely),
            "max_cost": str(most),
            "priced_at": now,
        }
        return quote, most

    def _settled(self, export: Export) -> Export:
        spender_id = _spender_of(export)
        # What was asked for before exports had prices holds nothing, and costs nothing.
        if self._books.position_of(spender_id) is not None:
            milliseconds = self._charged(export)
            self._books.close(spender_id, [self._entry(export, milliseconds)] * bool(milliseconds))
        return export

    def _charged(self, export: Export) -> int:
        if export.status not in _PAYS:
            return 0
        return _milliseconds(min(export.used_s, float(export.estimate["max_seconds"])))

    def _entry(self, export: Export, milliseconds: int) -> Entry:
        work = Work(export.id, export.request_id, ENDPOINT, export.base_model_id)
        return work.charge(
            self._holds.payer_of(export.project_id, export.key_id),
            Quantity(num_requests=1, export_milliseconds=milliseconds),
            self._tariff.by_id(export.estimate["price_id"]),
            float(export.estimate["priced_at"]),
        )


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def _spender_of(export: Export) -> str:
    return f"export:{export.id}"
