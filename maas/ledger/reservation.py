"""What an admitted request holds, and the charge it ends in."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from maas.ledger.caps import Amounts
from maas.ledger.entries import Entry, Exactness, Opened
from maas.ledger.prices import Price, Quantity
from maas.ledger.slices import Account


def _nothing() -> int:
    return 0


@dataclass(slots=True)
class Reservation:
    """What an admitted request holds until it is settled or dropped.

    Attributes:
        most: What it can take at most.
        count_delivered: Says how many tokens were seen to go out by now.
        num_logged: Those the log has.
    """

    opened: Opened
    price: Price
    account: Account
    most: Amounts
    count_delivered: Callable[[], int] = _nothing
    num_logged: int = 0
    _costed: tuple[Quantity, Decimal] | None = None

    def cost(self, quantity: Quantity) -> Decimal:
        """Return what a quantity costs under this reservation."""
        if self._costed is None or self._costed[0] is not quantity:
            self._costed = quantity, self.price.cost(quantity, self.opened.at)
        return self._costed[1]


def entry_of(
    opened: Opened, price: Price, quantity: Quantity, *, amount: Decimal, exactness: Exactness
) -> Entry:
    """Return the charge for a quantity used under a reservation."""
    return Entry(
        id=opened.id,
        at=opened.at,
        payer=opened.payer,
        request_id=opened.request_id,
        endpoint=opened.endpoint,
        model_id=opened.model_id,
        tier=opened.tier,
        price_id=price.id,
        currency=price.currency,
        amount=amount,
        exactness=exactness,
        num_requests=quantity.num_requests,
        input_tokens=quantity.input_tokens,
        cached_tokens=quantity.cached_tokens,
        output_tokens=quantity.output_tokens,
        training_tokens=quantity.training_tokens,
        gpu_milliseconds=quantity.gpu_milliseconds,
        storage_mib_hours=quantity.storage_mib_hours,
        export_milliseconds=quantity.export_milliseconds,
        base_model_id=opened.base_model_id,
    )
