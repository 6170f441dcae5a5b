"""Tables of webhooks: who wants to hear, and what is on its way."""

from typing import ClassVar

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from maas.store.tables import Base


class WebhookRow(Base):
    """An address that events of an organisation are sent to; the signing secret is sealed."""

    __tablename__ = "webhooks"
    __audit__: ClassVar[str | None] = "webhook"
    __audit_hidden__: ClassVar[frozenset[str]] = frozenset({"secret"})
    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    name: Mapped[str]
    url: Mapped[str] = mapped_column(String(2048))
    secret: Mapped[str] = mapped_column(String(512))
    events: Mapped[list[str]]
    created_at: Mapped[float]
    deleted_at: Mapped[float | None]


class DeliveryRow(Base):
    """An event on its way to one webhook."""

    __tablename__ = "webhook_deliveries"
    id: Mapped[str] = mapped_column(primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"), index=True)
    event: Mapped[str]
    body: Mapped[str] = mapped_column(String(16_384))
    created_at: Mapped[float]
    num_attempts: Mapped[int]
    next_at: Mapped[float | None] = mapped_column(index=True)
    delivered_at: Mapped[float | None]
    error: Mapped[str | None] = mapped_column(String(1024))


class BudgetAlertRow(Base):
    """A threshold of a budget that was passed: said once a month."""

    __tablename__ = "budget_alerts"
    limit_id: Mapped[str] = mapped_column(primary_key=True)
    month: Mapped[str] = mapped_column(primary_key=True)
    percent: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
