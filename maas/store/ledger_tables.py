"""Tables of the ledger. Amounts of money are whole nano-units; see ``maas.store.money``."""

from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Index
from sqlalchemy.orm import Mapped, mapped_column

from maas.store.money import Money
from maas.store.tables import Base


class PriceRow(Base):
    """A price as it was from ``valid_from`` on; never changed, only followed by another."""

    __tablename__ = "prices"
    __audit__: ClassVar[str | None] = "price"
    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(index=True)
    tier: Mapped[str]
    source: Mapped[str]
    currency: Mapped[str]
    rates: Mapped[dict[str, Any]]
    valid_from: Mapped[float]


class JournalRow(Base):
    """One charge, written once and never changed. ``id`` is that of its reservation.

    ``base_model_id`` is that of a tuned model's base, and empty of every other model.
    """

    __tablename__ = "journal"
    id: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[float]
    organization_id: Mapped[str]
    project_id: Mapped[str]
    key_id: Mapped[str]
    request_id: Mapped[str]
    endpoint: Mapped[str]
    model_id: Mapped[str]
    base_model_id: Mapped[str]
    tier: Mapped[str]
    num_requests: Mapped[int]
    input_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    output_tokens: Mapped[int]
    training_tokens: Mapped[int]
    gpu_milliseconds: Mapped[int]
    storage_mib_hours: Mapped[int]
    export_milliseconds: Mapped[int]
    price_id: Mapped[str]
    currency: Mapped[str]
    amount: Mapped[Decimal] = mapped_column(Money)
    exactness: Mapped[str]
    __table_args__ = (
        Index("ix_journal_organization_id_at", "organization_id", "at"),
        Index("ix_journal_project_id_at", "project_id", "at"),
        Index("ix_journal_key_id_at", "key_id", "at"),
        Index("ix_journal_at", "at"),
    )


class CounterRow(Base):
    """How much of a limit's window is used, and how much gateways hold to spend.

    ``used + leased`` never passes the cap: that is checked where ``leased`` grows.
    """

    __tablename__ = "counters"
    key: Mapped[str] = mapped_column(primary_key=True)
    window_end: Mapped[float | None] = mapped_column(index=True)
    used: Mapped[int]
    leased: Mapped[int]


class GrantRow(Base):
    """What one spender holds of a counter: counted in the counter's ``leased``."""

    __tablename__ = "grants"
    counter_key: Mapped[str] = mapped_column(primary_key=True)
    spender_id: Mapped[str] = mapped_column(primary_key=True, index=True)
    amount: Mapped[int] = mapped_column(BigInteger)


class SpenderRow(Base):
    """How far a spender's write-ahead log is in the journal: moved on with each posting."""

    __tablename__ = "spenders"
    id: Mapped[str] = mapped_column(primary_key=True)
    segment: Mapped[int]
    position: Mapped[int]
    seen_at: Mapped[float]
