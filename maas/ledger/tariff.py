"""Prices in the store: a version for each change of a card or of an operator's override."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from decimal import Decimal
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import ConfigError, NotFound
from maas.core.ids import new_id
from maas.ledger.prices import FREE, Price, PriceBook, Rates
from maas.store.database import Database
from maas.store.ledger_tables import PriceRow

DEFAULT_TIER = "default"
_CARD, _OVERRIDE, _RESET = "card", "override", "reset"


class Tariff:
    """Reads and writes prices. A price that was ever in force is never changed."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def sync(self, prices: Iterable[tuple[str, str, str, Rates]]) -> int:
        """Take over the cards' prices: model, tier, currency, rates.

        Returns:
            How many differ from what was known.

        Raises:
            ConfigError: Not all prices would be in one currency.
        """
        with self._database.write() as session:
            latest = _latest(session)
            num_new = 0
            for model_id, tier, currency, rates in prices:
                known = latest.get((model_id, tier, _CARD))
                # A rate that an older version did not know is one of nothing.
                if known is None or (known.currency, _rates_of(known.rates)) != (currency, rates):
                    self._add(session, model_id, tier, _CARD, currency, _plain(rates))
                    num_new += 1
            if num_new:
                _check_currency(session)
        return num_new

    def override(self, model_id: str, rates: Rates, *, tier: str, currency: str) -> Price:
        """Put an operator's price before the card's from now on.

        Raises:
            ConfigError: The other prices are in another currency.
        """
        with self._database.write() as session:
            row = self._add(session, model_id, tier, _OVERRIDE, currency, _plain(rates))
            _check_currency(session)
            return _price_of(row)

    def reset(self, model_id: str, *, tier: str) -> None:
        """Go back to the card's price.

        Raises:
            NotFound: There is no override.
        """
        with self._database.write() as session:
            known = _latest(session).get((model_id, tier, _OVERRIDE))
            if known is None or known.rates.get(_RESET):
                raise NotFound(f"the price of {model_id} ({tier}) is the card's own already")
            self._add(session, model_id, tier, _OVERRIDE, known.currency, {_RESET: True})

    def in_force(self) -> PriceBook:
        """Return the prices of this moment."""
        with self._database.read() as session:
            return PriceBook(in_force(session))

    def by_id(self, price_id: str) -> Price:
        """Return one version; the free price for an id nobody knows."""
        with self._database.read() as session:
            row = session.get(PriceRow, price_id)
            return FREE if row is None else _price_of(row)

    def history(self, model_id: str) -> list[Price]:
        """Return all versions of a model's prices, oldest first."""
        with self._database.read() as session:
            rows = session.scalars(
                select(PriceRow)
                .where(PriceRow.model_id == model_id)
                .order_by(PriceRow.valid_from, PriceRow.id)
            )
            return [_price_of(row) for row in rows if not row.rates.get(_RESET)]

    def _add(
        self,
        session: Session,
        model_id: str,
        tier: str,
        source: str,
        currency: str,
        rates: dict[str, Any],
    ) -> PriceRow:
        row = PriceRow(
            id=new_id("price"),
            model_id=model_id,
            tier=tier,
            source=source,
            currency=currency,
            rates=rates,
            valid_from=self._clock.now(),
        )
        session.add(row)
        return row


def _check_currency(session: Session) -> None:
    """Make sure that amounts can be added: a budget is one number, over all models.

    Raises:
        ConfigError: The prices in force are in several currencies.
    """
    session.flush()
    prices = [price for price in in_force(session).values() if not price.is_free]
    currencies = sorted({price.currency for price in prices})
    if len(currencies) > 1:
        raise ConfigError(
            f"prices must be in one currency and would be in {' and '.join(currencies)}: "
            "budgets and costs are sums over all models"
        )


def in_force(session: Session) -> dict[tuple[str, str], Price]:
    """Return the prices of this moment, by model and tier: overrides before cards."""
    found: dict[tuple[str, str], Price] = {}
    for (model_id, tier, source), row in sorted(_latest(session).items(), key=_cards_first):
        if source == _CARD or not row.rates.get(_RESET):
            found[model_id, tier] = _price_of(row)
    return found


def _cards_first(item: tuple[tuple[str, str, str], PriceRow]) -> bool:
    return item[0][2] != _CARD


def _latest(session: Session) -> dict[tuple[str, str, str], PriceRow]:
    rows = session.scalars(select(PriceRow).order_by(PriceRow.valid_from, PriceRow.id))
    return {(row.model_id, row.tier, row.source): row for row in rows}


def _plain(rates: Rates) -> dict[str, Any]:
    hours = rates.off_peak_hours
    plain: dict[str, Any] = {
        name: str(value.normalize())
        for name, value in asdict(rates).items()
        if isinstance(value, Decimal)
    }
    return plain | {"off_peak_hours": list(hours) if hours else None}


def _price_of(row: PriceRow) -> Price:
    return Price(row.id, row.model_id, row.tier, row.currency, _rates_of(row.rates), row.valid_from)


def _rates_of(plain: Mapping[str, Any]) -> Rates:
    names = {field.name for field in fields(Rates)} - {"off_peak_hours"}
    hours = plain.get("off_peak_hours")
    values = {name: Decimal(plain[name]) for name in names & plain.keys()}
    return Rates(**values, off_peak_hours=tuple(hours) if hours else None)
