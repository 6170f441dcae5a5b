"""Events of devices: each told once under its key, and of each device only the newest kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, func, insert, select
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
    tell_all(session, device_id, [news], now)


def tell_all(session: Session, device_id: str, news: Sequence[News], now: float) -> None:
    """Write events in their order, but those whose keys were told before.

    They cost as many statements as one does: a device may tell of many at once.
    """
    of_device = DeviceEventRow.device_id == device_id
    fresh: dict[str, News] = {}
    for item in news:
        fresh.setdefault(item.key, item)
    told = select(DeviceEventRow.key).where(of_device, DeviceEventRow.key.in_(list(fresh)))
    for key in session.scalars(told):
        del fresh[key]
    if not fresh:
        return
    newest, count = session.execute(
        select(func.max(DeviceEventRow.created_at), func.count()).where(of_device)
    ).one()
    # What is told at once keeps its order.
    began_at = max(now, (newest or 0.0) + _TICK_S)
    rows = [
        _row(device_id, item, began_at + number * _TICK_S)
        for number, item in enumerate(fresh.values())
    ]
    session.execute(insert(DeviceEventRow), rows)
    if count + len(rows) > MAX_EVENTS:
        _forget_old(session, device_id)


def _row(device_id: str, news: News, at: float) -> dict[str, Any]:
    return {
        "id": new_id("devevent"),
        "device_id": device_id,
        "key": news.key,
        "created_at": at,
        "level": news.level,
        "type": news.type,
        "message": as_text(news.message)[:_MAX_MESSAGE],
        "data": dict(news.data),
    }


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
