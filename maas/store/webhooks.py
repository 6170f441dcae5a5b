"""Webhooks and their outbox: an event is written in the transaction of what it tells of."""

import base64
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import InvalidRequest, NotFound
from maas.core.ids import new_id
from maas.store.database import Database
from maas.store.tenancy_tables import ProjectRow
from maas.store.text import as_name
from maas.store.webhook_tables import DeliveryRow, WebhookRow

BUDGET_EVENT = "organization.budget.threshold_reached"
_ENDS = ("succeeded", "failed", "cancelled")
JOB_EVENTS = tuple(f"fine_tuning.job.{end}" for end in _ENDS)
EXPORT_EVENTS = tuple(f"export.{end}" for end in _ENDS)
ROLLOUT_EVENTS = tuple(f"device.rollout.{end}" for end in ("completed", "halted", "held_up"))
EVENTS = (BUDGET_EVENT, *JOB_EVENTS, *EXPORT_EVENTS, *ROLLOUT_EVENTS)
SECRET_PREFIX = "whsec_"  # noqa: S105 - how Standard Webhooks marks a secret
# Pauses after each failed attempt; then it is given up.
PAUSES_S = (5.0, 30.0, 120.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0)
_CLAIM_S = 60.0


@dataclass(frozen=True)
class Webhook:
    """An address that events are sent to."""

    id: str
    organization_id: str
    name: str
    url: str
    events: tuple[str, ...]
    created_at: float


@dataclass(frozen=True)
class Delivery:
    """An event to be sent now.

    Attributes:
        secret: Of its webhook, sealed.
    """

    id: str
    url: str
    secret: str
    body: str
    num_attempts: int


class WebhookRepository:
    """Reads and writes webhooks, and takes deliveries out of the outbox.

    Args:
        database: The store.
        clock: For pauses.
        seal: Seals a secret that must be read back.
    """

    def __init__(self, database: Database, clock: Clock, seal: Callable[[str], str]) -> None:
        self._database = database
        self._clock = clock
        self._seal = seal

    def create(
        self, organization_id: str, *, name: str, url: str, events: tuple[str, ...] = EVENTS
    ) -> tuple[Webhook, str]:
        """Make a webhook.

        Returns:
            The record, and the signing secret: the only time anybody sees it.

        Raises:
            InvalidRequest: The name is empty, the address is none, or an event is not known.
        """
        _check(url, events)
        secret = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
        row = WebhookRow(
            id=new_id("wh"),
            organization_id=organization_id,
            name=as_name(name),
            url=url,
            secret=self._seal(secret),
            events=list(events),
            created_at=self._clock.now(),
            deleted_at=None,
        )
        with self._database.write(bump_revision=False) as session:
            session.add(row)
        return _record_of(row), secret

    def list(self, organization_id: str) -> tuple[Webhook, ...]:
        """Return an organisation's webhooks, oldest first."""
        with self._database.read() as session:
            return tuple(_record_of(row) for row in _of(session, organization_id))

    def delete(self, organization_id: str, webhook_id: str) -> None:
        """Remove a webhook; what is on its way to it is not sent any more.

        Raises:
            NotFound: There is none.
        """
        with self._database.write(bump_revision=False) as session:
            row = session.get(WebhookRow, webhook_id)
            if row is None or row.organization_id != organization_id or row.deleted_at:
                raise NotFound(f"no webhook has the id {webhook_id!r}")
            row.deleted_at = self._clock.now()

    def claim(self, limit: int = 20) -> tuple[Delivery, ...]:
        """Take what is due; if it is not said how it went, it is due again in a minute."""
        now = self._clock.now()
        query = (
            select(DeliveryRow, WebhookRow)
            .join(WebhookRow, WebhookRow.id == DeliveryRow.webhook_id)
            .where(DeliveryRow.next_at <= now, WebhookRow.deleted_at.is_(None))
            .order_by(DeliveryRow.next_at)
            .limit(limit)
        )
        # Every gateway looks every second: only what is due takes the turn of a writer.
        with self._database.read() as session:
            if session.execute(query).first() is None:
                return ()
        with self._database.write(bump_revision=False) as session:
            due = session.execute(query).all()
            for delivery, _ in due:
                delivery.next_at = now + _CLAIM_S
            return tuple(
                Delivery(
                    delivery.id, webhook.url, webhook.secret, delivery.body, delivery.num_attempts
                )
                for delivery, webhook in due
            )

    def finish(self, delivery_id: str, error: str | None) -> None:
        """Say how an attempt went."""
        now = self._clock.now()
        with self._database.write(bump_revision=False) as session:
            row = session.get_one(DeliveryRow, delivery_id)
            row.num_attempts += 1
            row.error = error and error[:1024]
            if error is None:
                row.delivered_at, row.next_at = now, None
            elif row.num_attempts > len(PAUSES_S):
                row.next_at = None
            else:
                row.next_at = now + PAUSES_S[row.num_attempts - 1]


def enqueue(
    session: Session, organization_id: str, event: str, data: Mapping[str, Any], *, now: float
) -> int:
    """Write an event to an organisation's webhooks, as part of a transaction.

    Returns:
        How many will hear of it.
    """
    hearing = [row for row in _of(session, organization_id) if event in row.events]
    for row in hearing:
        payload = {
            "id": new_id("evt"),
            "object": "event",
            "created_at": int(now),
            "type": event,
            "data": dict(data),
        }
        session.add(
            DeliveryRow(
                id=payload["id"],
                webhook_id=row.id,
                event=event,
                body=json.dumps(payload, separators=(",", ":")),
                created_at=now,
                num_attempts=0,
                next_at=now,
                delivered_at=None,
                error=None,
            )
        )
    return len(hearing)


def enqueue_for_project(
    session: Session, project_id: str, event: str, data: Mapping[str, Any], *, now: float
) -> int:
    """Write an event to the webhooks of a project's organisation, as part of a transaction."""
    project = session.get_one(ProjectRow, project_id)
    return enqueue(session, project.organization_id, event, data, now=now)


def _of(session: Session, organization_id: str) -> list[WebhookRow]:
    return list(
        session.scalars(
            select(WebhookRow)
            .where(WebhookRow.organization_id == organization_id, WebhookRow.deleted_at.is_(None))
            .order_by(WebhookRow.created_at)
        )
    )


def _check(url: str, events: tuple[str, ...]) -> None:
    if not _is_http(url):
        raise InvalidRequest(f"{url[:80]!r} is not an http address", param="url")
    for event in events:
        if event not in EVENTS:
            raise InvalidRequest(f"{event!r} is not an event; there are {EVENTS}", param="events")


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # Reading the port checks it.
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and has_host and len(url) <= 2048


def _record_of(row: WebhookRow) -> Webhook:
    return Webhook(
        row.id, row.organization_id, row.name, row.url, tuple(row.events), row.created_at
    )
