"""A ledger over a real store."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest
import pytest_asyncio

from maas.ledger.books import Books
from maas.ledger.caps import Amounts, Cap
from maas.ledger.entries import Exactness, Opened, Payer
from maas.ledger.prices import Price, Quantity, Rates
from maas.ledger.reservation import Reservation
from maas.ledger.spender import Spender
from maas.ledger.wal import WriteAheadLog
from maas.store.money import to_nanos

PAYER = Payer("org-1", "proj-1", "key-1")
# One unit of currency for a thousand tokens, in or out.
PRICE = Price("price-1", "m", "default", "USD", Rates(Decimal(1000), Decimal(500), Decimal(1000)))


@dataclass
class Desk:
    """A spender and the caps its requests count against."""

    spender: Spender
    clock: object
    caps: tuple[Cap, ...] = ()

    async def ask(
        self,
        *,
        input_tokens: int = 10,
        output_tokens: int = 10,
        model: str = "m",
        base: str = "",
        id_: str = "",
    ) -> Reservation:
        """Reserve for a request of at most so much."""
        now = self.clock.now()
        opened = Opened(
            id_ or self.spender.next_id(), now, PAYER, "req", "/v1/completions", model, "default",
            PRICE.id, input_tokens, base,
        )  # fmt: skip
        most = PRICE.highest_cost(input_tokens=input_tokens, output_tokens=output_tokens, at=now)
        account = self.spender.account(self.caps, now)
        amounts = Amounts(1, input_tokens + output_tokens, to_nanos(most), 1)
        return await self.spender.reserve(opened, PRICE, account, amounts)

    def finish(self, reservation: Reservation, *, input_tokens: int = 10, output_tokens: int = 10):
        """Settle what was used."""
        quantity = Quantity(1, input_tokens=input_tokens, output_tokens=output_tokens)
        return self.spender.settle(reservation, quantity, Exactness.EXACT)


@pytest.fixture
def books(database, clock) -> Books:
    return Books(database, clock)


@pytest_asyncio.fixture
async def desks(books, clock, tmp_path) -> AsyncIterator[Callable[..., "Desk"]]:
    """Open desks of spenders of their own; all are closed in the end."""
    opened: list[Spender] = []

    async def open_desk(*caps: Cap, name: str = "gw-1", wait_s: float = 1.0) -> Desk:
        spender = Spender(books, WriteAheadLog(tmp_path / "wal", name), clock, wait_s=wait_s)
        await spender.start()
        opened.append(spender)
        return Desk(spender, clock, caps)

    yield open_desk
    for spender in opened:
        await spender.stop()


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "wal"
