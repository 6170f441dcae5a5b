"""Closes the books of dead spenders from their logs."""

import logging
from collections.abc import Callable
from pathlib import Path

from maas.ledger import wal
from maas.ledger.books import Books
from maas.ledger.entries import Entry, Exactness, Opened
from maas.ledger.prices import Price, Quantity
from maas.ledger.reservation import entry_of

log = logging.getLogger(__name__)

PriceById = Callable[[str], Price]


def recover(folder: Path, books: Books, price_by_id: PriceById) -> int:
    """Post what dead spenders' logs still say, dissolve their grants, delete the logs.

    Safe to run anywhere and at any time: living spenders hold their logs' locks, and a log is
    posted once whoever tries.

    Returns:
        How many books were closed.

    Raises:
        HostError: The store cannot be used; everything is left as it is.
    """
    num_closed = 0
    for spender_id, _ in wal.abandoned(folder):
        position = books.position_of(spender_id)
        if position is not None:
            remains = wal.read(folder, spender_id, position)
            charges = [
                _charge(opened, delivered, price_by_id) for opened, delivered in remains.orphans
            ]
            entries = [*remains.entries, *(charge for charge in charges if charge is not None)]
            num_closed += books.close(spender_id, entries)
            log.warning(
                "closed the books of %s: %d charges, %d of them for requests it left open",
                spender_id,
                len(entries),
                len(entries) - len(remains.entries),
            )
        wal.remove(folder, spender_id)
    return num_closed


def _charge(opened: Opened, num_delivered: int, price_by_id: PriceById) -> Entry | None:
    """Return what an unsettled request costs: what was seen to go out; none for nothing."""
    if not num_delivered:
        return None
    price = price_by_id(opened.price_id)
    quantity = Quantity(
        num_requests=1, input_tokens=opened.input_tokens, output_tokens=num_delivered
    )
    amount = price.cost(quantity, opened.at)
    return entry_of(opened, price, quantity, amount=amount, exactness=Exactness.ESTIMATED)
