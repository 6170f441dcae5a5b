"""The time that leases are judged by: the same for all machines that share a store."""

import time

from maas.core.clock import SystemClock
from maas.store.database import Database


class StoreClock:
    """The database server's clock; this machine's own where the store is a file on it.

    Two machines whose clocks differ by more than a lease would each hold what the other holds.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._system = SystemClock()

    def now(self) -> float:
        """Return seconds since the Unix epoch; asks nobody."""
        offset_s = self._database.clock_offset_s
        return self._system.now() if offset_s is None else time.monotonic() + offset_s
