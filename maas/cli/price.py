"""``maas price``: what models cost here; an override goes before the card."""

from dataclasses import asdict, replace
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maas.bootstrap import resolve_settings
from maas.bootstrap.prices import card_prices
from maas.catalog.catalog import load_catalog
from maas.cli.output import JsonFlag, emit
from maas.cli.tenants import opened, wait_for_gateways
from maas.core.errors import ConfigError
from maas.ledger.prices import Price
from maas.ledger.tariff import DEFAULT_TIER, Tariff

app = typer.Typer(help="Prices: list, set, reset.", no_args_is_help=True)

_ModelArgument = Annotated[str, typer.Argument(help="Model id.")]
_TierOption = Annotated[str, typer.Option("--tier", help="Service tier.")]


def _amount(text: str, option: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation as error:
        raise ConfigError(f"{option} {text!r}: want an amount") from error
    if not amount.is_finite() or amount < 0:
        raise ConfigError(f"{option} {text!r}: want an amount that is not negative")
    return amount


def _plain(price: Price) -> dict[str, Any]:
    rates = {
        name: f"{value:f}" if isinstance(value, Decimal) else value
        for name, value in asdict(price.rates).items()
    }
    return {
        "id": price.id,
        "model": price.model_id,
        "tier": price.tier,
        "currency": price.currency,
        "valid_from": price.valid_from,
        **rates,
    }


def _draw(console: Console, prices: list[Price]) -> None:
    table = Table("model", "tier", "input", "cached input", "output", "training", "since")
    for price in prices:
        rates = price.rates
        table.add_row(
            price.model_id,
            price.tier,
            f"{rates.input_per_million:f} {price.currency}",
            f"{rates.cached_input_per_million:f}",
            f"{rates.output_per_million:f}",
            f"{rates.training_per_million:f}",
            f"{price.valid_from:.0f}",
        )
    console.print(table)
    console.print("per million tokens")


@app.command("list")
def list_prices(
    model: Annotated[str | None, typer.Option(help="Every version of one model's prices.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the prices in force."""
    store = opened()
    tariff = Tariff(store.database, store.clock)
    tariff.sync(card_prices(load_catalog(resolve_settings().models_dir)))
    prices = tariff.history(model) if model is not None else tariff.in_force().all()
    emit(
        {"prices": [_plain(price) for price in prices]},
        as_json=as_json,
        render=lambda console: _draw(console, prices),
    )


@app.command("set")
def set_price(  # noqa: PLR0913 - a command line has as many options as it has
    model: _ModelArgument,
    input_per_million: Annotated[str | None, typer.Option("--input")] = None,
    cached_input_per_million: Annotated[str | None, typer.Option("--cached-input")] = None,
    output_per_million: Annotated[str | None, typer.Option("--output")] = None,
    training_per_million: Annotated[str | None, typer.Option("--training")] = None,
    currency: Annotated[str | None, typer.Option(help="ISO 4217 code.")] = None,
    tier: _TierOption = DEFAULT_TIER,
    as_json: JsonFlag = False,
) -> None:
    """Put a price before the card's from now on; what is not given stays as it is."""
    given = {
        "input_per_million": input_per_million,
        "cached_input_per_million": cached_input_per_million,
        "output_per_million": output_per_million,
        "training_per_million": training_per_million,
    }
    changes = {
        name: _amount(text, f"--{name.removesuffix('_per_million').replace('_', '-')}")
        for name, text in given.items()
        if text is not None
    }
    store = opened()
    tariff = Tariff(store.database, store.clock)
    tariff.sync(card_prices(load_catalog(resolve_settings().models_dir)))
    known = tariff.in_force().price_of(model, tier)
    price = tariff.override(
        model, replace(known.rates, **changes), tier=tier, currency=currency or known.currency
    )
    wait_for_gateways(store)
    emit(_plain(price), as_json=as_json, render=lambda console: _draw(console, [price]))


@app.command()
def reset(
    model: _ModelArgument, tier: _TierOption = DEFAULT_TIER, as_json: JsonFlag = False
) -> None:
    """Go back to the card's price."""
    store = opened()
    tariff = Tariff(store.database, store.clock)
    tariff.reset(model, tier=tier)
    wait_for_gateways(store)
    price = tariff.in_force().price_of(model, tier)
    emit(_plain(price), as_json=as_json, render=lambda console: _draw(console, [price]))
