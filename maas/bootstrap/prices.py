"""The cards' prices, taken over into the store."""

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

from maas.catalog.catalog import Catalog
from maas.ledger.prices import Rates
from maas.ledger.tariff import DEFAULT_TIER

_AMOUNTS = (
    "input_per_million",
    "cached_input_per_million",
    "output_per_million",
    "training_per_million",
    "gpu_second",
    "storage_gib_month",
    "export_second",
)


def card_prices(catalog: Catalog) -> Iterator[tuple[str, str, str, Rates]]:
    """Yield model, tier, currency and rates of every price on a card."""
    for card in catalog.values():
        price = card.price
        rates = Rates(
            **{name: getattr(price, name) for name in _AMOUNTS},
            off_peak_factor=price.off_peak_factor,
            off_peak_hours=price.off_peak_hours,
        )
        yield card.id, DEFAULT_TIER, price.currency, rates
        for tier, factor in price.tiers.items():
            yield card.id, tier, price.currency, _times(rates, factor)


def _times(rates: Rates, factor: Decimal) -> Rates:
    return replace(rates, **{name: getattr(rates, name) * factor for name in _AMOUNTS})
