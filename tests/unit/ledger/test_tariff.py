"""Prices keep their past: what was used once costs what it cost then."""

from dataclasses import replace
from decimal import Decimal

import pytest

from maas.core.errors import ConfigError, NotFound
from maas.ledger.prices import Price, Quantity, Rates
from maas.ledger.tariff import Tariff

RATES = Rates(Decimal("0.10"), Decimal("0.05"), Decimal("0.40"))


@pytest.fixture
def tariff(database, clock):
    return Tariff(database, clock)


def _sync(tariff, rates=RATES):
    return tariff.sync([("m", "default", "USD", rates)])


def test_a_card_is_taken_over_once(tariff):
    assert _sync(tariff) == 1
    assert _sync(tariff) == 0
    assert tariff.in_force().price_of("m").rates == RATES


def test_a_changed_card_is_a_new_version_and_the_old_one_stays(tariff, clock):
    _sync(tariff)
    old = tariff.in_force().price_of("m")
    clock.advance(1)
    _sync(tariff, replace(RATES, output_per_million=Decimal(9)))
    new = tariff.in_force().price_of("m")
    assert new.id != old.id
    assert new.rates.output_per_million == 9
    assert tariff.by_id(old.id) == old
    assert [price.id for price in tariff.history("m")] == [old.id, new.id]


def test_an_override_goes_before_the_card_until_it_is_reset(tariff, clock):
    _sync(tariff)
    clock.advance(1)
    tariff.override("m", Rates(Decimal(7)), tier="default", currency="EUR")
    assert tariff.in_force().price_of("m").rates.input_per_million == 7
    assert tariff.in_force().price_of("m").currency == "EUR"
    clock.advance(1)
    _sync(tariff, replace(RATES, output_per_million=Decimal(1)))
    assert tariff.in_force().price_of("m").rates.input_per_million == 7
    clock.advance(1)
    tariff.reset("m", tier="default")
    assert tariff.in_force().price_of("m").rates.output_per_million == 1
    with pytest.raises(NotFound):
        tariff.reset("m", tier="default")


def test_an_unknown_tier_costs_what_the_default_one_does_and_an_unknown_model_nothing(tariff):
    _sync(tariff)
    assert tariff.in_force().price_of("m", "batch").rates == RATES
    assert tariff.in_force().price_of("other").is_free


def test_cached_tokens_cost_their_own_price():
    price = Price("p", "m", "default", "USD", RATES)
    used = Quantity(1, input_tokens=1000, cached_tokens=400, output_tokens=10)
    assert price.cost(used, 0) == Decimal("0.000084")


def test_costs_are_exact_to_a_billionth_and_halves_go_to_the_even_neighbour():
    price = Price("p", "m", "default", "USD", Rates(Decimal("0.0005")))
    assert price.cost(Quantity(1, input_tokens=1), 0) == 0
    assert price.cost(Quantity(1, input_tokens=3), 0) == Decimal("0.000000002")


@pytest.mark.parametrize(
    ("hour", "hours", "factor"),
    [
        (23, (22, 6), "0.5"),
        (5, (22, 6), "0.5"),
        (6, (22, 6), "1"),
        (12, (9, 17), "0.5"),
        (17, (9, 17), "1"),
    ],
)
def test_off_peak_hours_may_pass_midnight(hour, hours, factor):
    rates = Rates(off_peak_factor=Decimal("0.5"), off_peak_hours=hours)
    assert Price("p", "m", "default", "USD", rates).factor(hour * 3600.0) == Decimal(factor)


def test_training_accelerators_and_storage_have_prices():
    rates = Rates(
        training_per_million=Decimal(3),
        gpu_second=Decimal("0.001"),
        storage_gib_month=Decimal("0.2"),
    )
    price = Price("p", "m", "default", "USD", rates)
    used = Quantity(training_tokens=10**6, gpu_milliseconds=2500, storage_mib_hours=1024 * 720)
    assert price.cost(used, 0) == Decimal("3.2025")


def test_the_highest_cost_is_never_below_the_cost():
    price = Price("p", "m", "default", "USD", RATES)
    for cached in range(0, 101, 10):
        used = Quantity(1, input_tokens=100, cached_tokens=cached, output_tokens=7)
        most = price.highest_cost(input_tokens=100, output_tokens=7, at=0)
        assert price.cost(used, 0) <= most


def test_prices_of_several_currencies_are_refused(database, clock):
    tariff = Tariff(database, clock)
    tariff.override("a", Rates(Decimal(1)), tier="default", currency="EUR")
    with pytest.raises(ConfigError, match="EUR and USD"):
        tariff.override("b", Rates(Decimal(1)), tier="default", currency="USD")
    with pytest.raises(ConfigError, match="EUR and USD"):
        tariff.sync([("c", "default", "USD", Rates(Decimal(1)))])
    # What costs nothing costs nothing in every currency.
    tariff.sync([("d", "default", "USD", Rates())])
    tariff.override("b", Rates(Decimal(1)), tier="default", currency="EUR")
    assert {price.model_id for price in tariff.in_force().all()} == {"a", "b", "d"}
