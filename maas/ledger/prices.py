"""What use costs: rates by model and tier, each version kept, so that old usage keeps its price."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from functools import cached_property

import msgspec

from maas.store.money import NANO, from_nanos, to_nanos

MILLION = Decimal(10**6)
MILLISECONDS = Decimal(1000)
# Mebibyte-hours in a gibibyte-month of 30 days.
MIB_HOURS = Decimal(1024 * 24 * 30)


@dataclass(frozen=True)
class Rates:
    """Prices of one model and tier.

    Attributes:
        input_per_million: Prompt tokens that were computed.
        cached_input_per_million: Prompt tokens found in the prefix cache.
        output_per_million: Generated tokens.
        training_per_million: Tokens trained on, epochs counted.
        gpu_second: One accelerator for one second.
        storage_gib_month: A gibibyte kept for 30 days.
        export_second: One second of work on an export.
        off_peak_factor: What everything is multiplied by in the off-peak hours.
        off_peak_hours: First and last-but-one hour, UTC; may pass midnight; none: never.
    """

    input_per_million: Decimal = Decimal(0)
    cached_input_per_million: Decimal = Decimal(0)
    output_per_million: Decimal = Decimal(0)
    training_per_million: Decimal = Decimal(0)
    gpu_second: Decimal = Decimal(0)
    storage_gib_month: Decimal = Decimal(0)
    export_second: Decimal = Decimal(0)
    off_peak_factor: Decimal = Decimal(1)
    off_peak_hours: tuple[int, int] | None = None


class Quantity(msgspec.Struct, frozen=True):
    """What was used.

    Attributes:
        input_tokens: Prompt tokens, cached ones too.
        cached_tokens: Those of them found in the prefix cache.
    """

    num_requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    training_tokens: int = 0
    gpu_milliseconds: int = 0
    storage_mib_hours: int = 0
    export_milliseconds: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that count against limits."""
        return self.input_tokens + self.output_tokens + self.training_tokens


@dataclass(frozen=True)
class Price:
    """One version of a model's price in a tier."""

    id: str
    model_id: str
    tier: str
    currency: str
    rates: Rates = field(default_factory=Rates)
    valid_from: float = 0.0

    @cached_property
    def _per_token(self) -> tuple[Decimal, Decimal, Decimal, Decimal]:
        rates = self.rates
        return (
            rates.input_per_million / MILLION,
            rates.cached_input_per_million / MILLION,
            rates.output_per_million / MILLION,
            rates.training_per_million / MILLION,
        )

    @cached_property
    def is_free(self) -> bool:
        """Whether nothing it prices costs anything."""
        return self.rates == Rates(
            off_peak_factor=self.rates.off_peak_factor, off_peak_hours=self.rates.off_peak_hours
        )

    def factor(self, at: float) -> Decimal:
        """Return what prices are multiplied by at a moment."""
        hours = self.rates.off_peak_hours
        if hours is None:
            return Decimal(1)
        hour, (first, end) = datetime.fromtimestamp(at, UTC).hour, hours
        is_off_peak = first <= hour < end if first <= end else hour >= first or hour < end
        return self.rates.off_peak_factor if is_off_peak else Decimal(1)

    def cost(self, used: Quantity, at: float) -> Decimal:
        """Return what a quantity costs, to a billionth of the currency.

        Args:
            used: The quantity.
            at: When its use was admitted, epoch seconds: decides peak or off-peak.
        """
        if self.is_free:
            return Decimal(0)
        fresh, cached, output, training = self._per_token
        total = (
            (used.input_tokens - used.cached_tokens) * fresh
            + used.cached_tokens * cached
            + used.output_tokens * output
        )
        is_work = used.training_tokens or used.gpu_milliseconds or used.export_milliseconds
        if is_work or used.storage_mib_hours:
            total += (
                used.training_tokens * training
                + used.gpu_milliseconds * self.rates.gpu_second / MILLISECONDS
                + used.export_milliseconds * self.rates.export_second / MILLISECONDS
                + used.storage_mib_hours * self.rates.storage_gib_month / MIB_HOURS
            )
        return from_nanos(to_nanos(total * self.factor(at)))

    def highest_cost(self, *, input_tokens: int, output_tokens: int, at: float) -> Decimal:
        """Return the most that a request can cost whatever the prefix cache holds."""
        fresh, cached, output, _ = self._per_token
        total = input_tokens * max(fresh, cached) + output_tokens * output
        return (total * self.factor(at)).quantize(NANO, rounding=ROUND_CEILING)


FREE = Price(id="", model_id="", tier="", currency="USD")


class PriceBook:
    """The prices in force: an override before the card's own, a tier before the default one."""

    def __init__(self, prices: Mapping[tuple[str, str], Price]) -> None:
        self._prices = prices

    def all(self) -> list[Price]:
        """Return every price in force, by model and tier."""
        return [self._prices[pair] for pair in sorted(self._prices)]

    def price_of(self, model_id: str, tier: str = "default", *, base: str | None = None) -> Price:
        """Return the price of a model in a tier.

        Args:
            model_id: The model.
            tier: Its own price in the tier goes before its default one.
            base: The model it was tuned from, whose price it has where it has none.
        """
        names = [model_id] if base is None else [model_id, base]
        for name in names:
            found = self._prices.get((name, tier)) or self._prices.get((name, "default"))
            if found is not None:
                return found
        return FREE
