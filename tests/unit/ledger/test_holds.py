"""The one charge for a piece of work."""

from decimal import Decimal

import pytest

from maas.ledger.entries import Exactness, Payer
from maas.ledger.holds import Work
from maas.ledger.prices import Price, Quantity, Rates

AT = 1_800_000_000.0


@pytest.mark.parametrize(
    ("counter", "amount"), [("export_milliseconds", "0.003"), ("training_tokens", "0.75")]
)
def test_work_is_charged_what_it_took_at_the_price_that_was_agreed(counter, amount):
    rates = Rates(training_per_million=Decimal(500), export_second=Decimal("0.002"))
    price = Price("price-1", "tiny", "default", "EUR", rates)
    used = Quantity(num_requests=1, **{counter: 1500})
    payer = Payer("org", "proj", "key")
    entry = Work("job-1", "req-1", "/v1/exports", "tiny").charge(payer, used, price, AT)
    assert (entry.id, entry.request_id, entry.endpoint) == ("job-1", "req-1", "/v1/exports")
    assert (entry.payer, entry.model_id, entry.tier) == (payer, "tiny", "default")
    assert (entry.price_id, entry.currency, entry.at) == ("price-1", "EUR", AT)
    assert (entry.amount, entry.exactness) == (Decimal(amount), Exactness.EXACT)
    assert (entry.num_requests, getattr(entry, counter)) == (1, 1500)
