"""``maas price``: what models cost here; an override goes before the card."""

import re
import time
from dataclasses import asdict, replace
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from maas.bootstrap import resolve_settings
from maas.bootstrap.prices import card_prices
from maas.catalog.catalog import load_catalog
from maas.cli.output import JsonFlag, emit
from maas.cli.tenants import opened, wait_for_gateways
from maas.core.errors import ConfigError, NotFound
from maas.ledger.prices import Price
from maas.ledger.tariff import DEFAULT_TIER, Tariff

app = typer.Typer(help="Prices: list, set, reset.", no_args_is_help=True)

_MOST = Decimal(10**6)
_PER_MILLION = "Of a million tokens."


class Tier(StrEnum):
    """Service tiers; a project's priority says which one its requests are in."""

    DEFAULT = DEFAULT_TIER
    BATCH = "batch"
    BACKGROUND = "background"


_ModelArgument = Annotated[str, typer.Argument(help="Model id.")]
_TierOption = Annotated[Tier, typer.Option("--tier", help="Service tier.")]


def _amount(text: str, option: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation as error:
        raise ConfigError(f"{option} {text!r}: want an amount") from error
    if not amount.is_finite() or not 0 <= amount <= _MOST:
        raise ConfigError(f"{option} {text!r}: want an amount from 0 to {_MOST}")
    return amount


def _factor(text: str) -> Decimal:
    factor = _amount(text, "--off-peak-factor")
    if factor > 1:
        raise ConfigError(f"--off-peak-factor {text!r}: want 0 to 1")
    return factor


def _hours(text: str) -> tuple[int, int] | None:
    if text == "none":
        return None
    match = re.fullmatch(r"(\d{1,2})-(\d{1,2})", text, re.ASCII)
    first, end = (int(match[1]), int(match[2])) if match is not None else (0, 0)
    if first == end or first > 23 or end > 24:
        raise ConfigError(f"--off-peak-hours {text!r}: want hours of UTC such as 22-6, or none")
    return first, end


def _currency(text: str) -> str:
    if re.fullmatch(r"[A-Z]{3}", text) is None:
        raise ConfigError(f"--currency {text!r}: want a code of ISO 4217, such as USD")
    return text


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
    table = Table(
        "model", "tier", "input", "cached input", "output", "training", "off-peak", "since (UTC)"
    )
    for price in prices:
        rates = price.rates
        table.add_row(
            price.model_id,
            price.tier,
            f"{rates.input_per_million:f} {price.currency}",
            f"{rates.cached_input_per_million:f}",
            f"{rates.output_per_million:f}",
            f"{rates.training_per_million:f}",
            _off_peak(price),
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(price.valid_from)),
        )
    console.print(table)
    console.print("per million tokens")


def _off_peak(price: Price) -> str:
    hours = price.rates.off_peak_hours
    return "" if hours is None else f"x{price.rates.off_peak_factor:f} {hours[0]}-{hours[1]} UTC"


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
    if model is not None and not prices:
        raise NotFound(f"{model!r} never had a price; what has one: maas price list")
    emit(
        {"prices": [_plain(price) for price in prices]},
        as_json=as_json,
        render=lambda console: _draw(console, prices),
    )


def _option_of(name: str) -> str:
    return name.removesuffix("_per_million").removesuffix("_gib_month").replace("_", "-")


@app.command("set")
def set_price(  # noqa: PLR0913 - a command line has as many options as it has
    model: _ModelArgument,
    input_per_million: Annotated[str | None, typer.Option("--input", help=_PER_MILLION)] = None,
    cached_input_per_million: Annotated[
        str | None, typer.Option("--cached-input", help=_PER_MILLION)
    ] = None,
    output_per_million: Annotated[str | None, typer.Option("--output", help=_PER_MILLION)] = None,
    training_per_million: Annotated[
        str | None, typer.Option("--training", help=_PER_MILLION)
    ] = None,
    gpu_second: Annotated[str | None, typer.Option(help="One accelerator, one second.")] = None,
    storage_gib_month: Annotated[
        str | None, typer.Option("--storage", help="A gibibyte kept for 30 days.")
    ] = None,
    export_second: Annotated[str | None, typer.Option(help="An export, one second.")] = None,
    off_peak_factor: Annotated[
        str | None, typer.Option(help="What prices are multiplied by off-peak, 0 to 1.")
    ] = None,
    off_peak_hours: Annotated[
        str | None, typer.Option(help="Hours of UTC such as 22-6; none ends them.")
    ] = None,
    currency: Annotated[str | None, typer.Option(help="ISO 4217 code.")] = None,
    tier: _TierOption = Tier.DEFAULT,
    as_json: JsonFlag = False,
) -> None:
    """Put a price before the card's from now on; what is not given stays as it is."""
    given = {
        "input_per_million": input_per_million,
        "cached_input_per_million": cached_input_per_million,
        "output_per_million": output_per_million,
        "training_per_million": training_per_million,
        "gpu_second": gpu_second,
        "storage_gib_month": storage_gib_month,
        "export_second": export_second,
    }
    changes: dict[str, Any] = {
        name: _amount(text, f"--{_option_of(name)}")
        for name, text in given.items()
        if text is not None
    }
    if off_peak_factor is not None:
        changes["off_peak_factor"] = _factor(off_peak_factor)
    if off_peak_hours is not None:
        changes["off_peak_hours"] = _hours(off_peak_hours)
    if not changes and currency is None:
        raise ConfigError("give at least one number, such as --input 0.10")
    if not model.strip():
        raise ConfigError("the model id is empty")
    store = opened()
    tariff = Tariff(store.database, store.clock)
    tariff.sync(card_prices(load_catalog(resolve_settings().models_dir)))
    known = tariff.in_force().price_of(model, tier)
    price = tariff.override(
        model,
        replace(known.rates, **changes),
        tier=tier,
        currency=known.currency if currency is None else _currency(currency),
    )
    wait_for_gateways(store)
    emit(_plain(price), as_json=as_json, render=lambda console: _draw(console, [price]))


@app.command()
def reset(
    model: _ModelArgument, tier: _TierOption = Tier.DEFAULT, as_json: JsonFlag = False
) -> None:
    """Go back to the card's price."""
    store = opened()
    tariff = Tariff(store.database, store.clock)
    tariff.reset(model, tier=tier)
    wait_for_gateways(store)
    price = tariff.in_force().price_of(model, tier)
    # What nobody prices is free.
    price = price if price.id else replace(price, model_id=model, tier=tier)
    emit(_plain(price), as_json=as_json, render=lambda console: _draw(console, [price]))
