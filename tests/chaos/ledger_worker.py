"""A gateway's ledger alone, to be killed: ``python -m tests.chaos.ledger_worker URL FOLDER ID``.

Reserves and settles small requests as fast as it can against one budget, and says on stdout what it
has settled, after it settled it: whoever kills it knows what must not be lost.
"""

import asyncio
import random
import sys
from decimal import Decimal
from pathlib import Path

from maas.core.clock import SystemClock
from maas.core.errors import BudgetExceeded
from maas.ledger.books import Books
from maas.ledger.caps import Amounts, Cap, Metric
from maas.ledger.entries import Exactness, Opened, Payer
from maas.ledger.prices import Price, Quantity, Rates
from maas.ledger.spender import Spender
from maas.ledger.wal import WriteAheadLog
from maas.store.database import Database
from maas.store.money import to_nanos

PRICE = Price("price-1", "m", "default", "USD", Rates(Decimal(1000), Decimal(1000), Decimal(1000)))
BUDGET = Decimal(40)
CAPS = (Cap(Metric.MONTHLY_BUDGET, "project:proj-1", to_nanos(BUDGET)),)
PAYER = Payer("org-1", "proj-1", "key-1")
NUM_CLIENTS = 16


async def client(spender: Spender, random_: random.Random, pause_s: float) -> None:
    """Ask again and again, a token each ``pause_s`` or less; ends when the budget is spent."""
    while True:
        now = SystemClock().now()
        opened = Opened(
            spender.next_id(), now, PAYER, "req", "/v1/completions", "m", "default", PRICE.id, 5
        )
        most = PRICE.highest_cost(input_tokens=5, output_tokens=15, at=now)
        account = spender.account(CAPS, now)
        amounts = Amounts(1, 20, to_nanos(most), 1)
        try:
            reservation = await spender.reserve(opened, PRICE, account, amounts)
        except BudgetExceeded:
            return
        delivered: list[int] = []
        reservation.count_delivered = delivered.__len__
        for token in range(random_.randint(0, 15)):
            await asyncio.sleep(random_.random() * pause_s)
            delivered.append(token)
        if not delivered:
            spender.drop(reservation)
            continue
        quantity = Quantity(1, input_tokens=5, output_tokens=len(delivered))
        entry = spender.settle(reservation, quantity, Exactness.EXACT)
        sys.stdout.write(f"{entry.id} {entry.amount}\n")
        sys.stdout.flush()


async def main(url: str, folder: str, spender_id: str) -> None:
    """Run until the budget is spent."""
    database = Database(url)
    clock = SystemClock()
    spender = Spender(
        Books(database, clock), WriteAheadLog(Path(folder), spender_id), clock, wait_s=2.0
    )
    await spender.start()
    random_ = random.Random(spender_id)
    await asyncio.gather(
        *(client(spender, random_, 0.2 if n % 4 else 0.005) for n in range(NUM_CLIENTS))
    )
    await spender.stop()
    sys.stdout.write("spent\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
