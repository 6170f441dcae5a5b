"""Money in the database: whole nano-units (10^-9 of the currency), so that sums are exact."""

from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from sqlalchemy import BigInteger, Dialect
from sqlalchemy.types import TypeDecorator

NANO = Decimal("1e-9")


def to_nanos(amount: Decimal) -> int:
    """Return an amount in whole nano-units, a half going to the even neighbour."""
    return int((amount / NANO).to_integral_value(rounding=ROUND_HALF_EVEN))


def from_nanos(nanos: int) -> Decimal:
    """Return nano-units as an amount."""
    return nanos * NANO


class Money(TypeDecorator[Decimal]):
    """A ``Decimal`` in Python, an integer of nano-units in the database."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Return what is stored."""
        return None if value is None else to_nanos(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Return what was stored."""
        return None if value is None else from_nanos(int(value))
