"""The ledger of one gateway: its purse, the books behind it, and the care for dead neighbours."""

import asyncio
import contextlib
import logging
from pathlib import Path

from maas.core.clock import Clock
from maas.core.errors import MaasError
from maas.core.ids import new_id
from maas.ledger.alerts import BudgetAlerts
from maas.ledger.books import Books
from maas.ledger.recovery import recover
from maas.ledger.spender import Spender
from maas.ledger.tariff import Tariff
from maas.ledger.usage import UsageReader
from maas.ledger.wal import WriteAheadLog
from maas.store.database import Database

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0


class Ledger:
    """Opens a spender of its own, and closes the books of those that died.

    Args:
        database: The store.
        clock: For windows.
        folder: Where write-ahead logs are.

    Attributes:
        spender: This gateway's purse.
        tariff: Prices.
        usage: What was used, and what it cost.
    """

    def __init__(self, database: Database, clock: Clock, folder: Path) -> None:
        self.clock = clock
        self.tariff = Tariff(database, clock)
        self.usage = UsageReader(database, clock)
        self._folder = folder
        self._books = Books(database, clock)
        self.spender = Spender(self._books, WriteAheadLog(folder, new_id("spender")), clock)
        self._alerts = BudgetAlerts(database, clock)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Close the books of the dead, then open for business."""
        await self._recover()
        await self.spender.start()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Post everything and give everything back."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.spender.stop()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._recover()
            with contextlib.suppress(MaasError):
                await asyncio.to_thread(self._books.touch, self.spender.id)
                await asyncio.to_thread(self._alerts.check)

    async def _recover(self) -> None:
        try:
            await asyncio.to_thread(recover, self._folder, self._books, self.tariff.by_id)
            await asyncio.to_thread(self._books.sweep)
        except MaasError as error:
            log.error("the books of the dead stay open: %s", error.message)
        except OSError as error:
            log.error("a log cannot be read, its books stay open: %s", error)
