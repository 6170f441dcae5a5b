"""Events of devices: each told once under its key, and of each device only the newest kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from maas.core.ids import new_id
from maas.store.fleet_tables import DeviceEventRow
from maas.store.text import as_text

# A device that tells of errors for ever fills no store: past the second the oldest go.
KEPT_EVENTS, MAX_EVENTS = 200, 260
_MAX_MESSAGE = 4096
_TICK_S = 1e-5


@dataclass(frozen=True)
class News:
    """Something to tell of a device.

    Attributes:
        key: What it is told once under.
    """

    key: str
    type: str
    message: str
    level: str = "info"
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])


def tell(session: Session, device_id: str, news: News, now: float) -> None:
    """Write an event, unless its key was told before."""
    of_device = DeviceEventRow.device_id == device_id
    told = select(DeviceEventRow.id).where(of_device, DeviceEventRow.key == news.key)
    if session.scalars(told).first() is not None:
        return
    newest, count = session.execute(
        select(func.max(DeviceEventRow.created_at), func.count()).where(of_device)
    ).one()
    session.add(
        DeviceEventRow(
            id=new_id("devevent"),
            device_id=device_id,
            key=news.key,
            # What is told at once keeps its order.
            created_at=max(now, (newest or 0.0) + _TICK_S),
            level=news.level,
            type=news.type,
            message=as_text(news.message)[:_MAX_MESSAGE],
            data=dict(news.data),
        )
    )
    session.flush()
    if count >= MAX_EVENTS:
        _forget_old(session, device_id)


def _forget_old(session: Session, device_id: str) -> None:
    of_device = DeviceEventRow.device_id == device_id
    oldest_kept = session.scalars(
        select(DeviceEventRow.created_at)
        .where(of_device)
        .order_by(DeviceEventRow.created_at.desc())
        .offset(KEPT_EVENTS - 1)
        .limit(1)
    ).one()
    session.execute(
        delete(DeviceEventRow).where(of_device, DeviceEventRow.created_at < oldest_kept)
    )
