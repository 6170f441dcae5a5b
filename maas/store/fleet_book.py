"""What decides about devices, read at once: groups, channels, and rollouts that are not over."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session

from maas.store.fleet_records import DEFAULT_HEARTBEAT_S, MISSED_HEARTBEATS, course_of
from maas.store.fleet_tables import (
    DeviceChannelRow,
    DeviceGroupRow,
    DeviceRolloutRow,
    DeviceRow,
    DeviceStateRow,
)
from maas.store.rollout_rules import OVER, Wish, is_in, wish_of
from maas.store.told import Told, read_told

_OVER = [status.value for status in OVER]
# Of a device: its own channel, else its group's.
_CHANNEL = func.coalesce(DeviceRow.channel, DeviceGroupRow.channel)
IN_GROUP = and_(
    DeviceGroupRow.project_id == DeviceRow.project_id, DeviceGroupRow.name == DeviceRow.group_name
)
_COLUMNS: tuple[Any, ...] = (
    DeviceRow.id,
    DeviceRow.key_id,
    DeviceRow.project_id,
    DeviceRow.group_name,
    DeviceRow.retired_at,
    _CHANNEL,
    DeviceRow.bundle_id,
    DeviceGroupRow.bundle_id,
    DeviceGroupRow.fallback_model,
    DeviceGroupRow.heartbeat_s,
    DeviceStateRow.bundle_id,
    DeviceStateRow.told,
    DeviceStateRow.last_seen_at,
)


@dataclass(frozen=True)
class DeviceFacts:
    """What decides about one device.

    Attributes:
        channel: That it follows; none of a retired device whose group is gone.
        pins: Bundles it is bound to: its own, its group's.
        runs: The bundle that it says it runs.
        told: Bundles that it was told to run.
    """

    id: str
    key_id: str
    project_id: str
    group: str
    retired_at: float | None
    channel: str | None
    pins: tuple[str | None, str | None]
    fallback_model: str | None
    heartbeat_s: int
    runs: str | None
    told: Mapping[str, Told]
    last_seen_at: float | None

    def is_online(self, now: float) -> bool:
        """Say whether it was heard of lately."""
        return is_online(self.last_seen_at, self.heartbeat_s, now) and self.retired_at is None


@dataclass(frozen=True)
class FleetBook:
    """Channels and unfinished rollouts of some projects; rollouts are rows, which may change."""

    channels: dict[tuple[str, str], str | None]
    rollouts: dict[tuple[str, str], DeviceRolloutRow]

    def rollout_for(self, device: DeviceFacts) -> DeviceRolloutRow | None:
        """Return the unfinished rollout that a device is in."""
        if device.channel is None or any(device.pins):
            return None
        row = self.rollouts.get((device.project_id, device.channel))
        if row is None or row.status in _OVER:
            return None
        return row if is_in(row.id, device.id, row.stages[row.stage]["percent"]) else None

    def wish_for(self, device: DeviceFacts, runs: str | None, told: Collection[str]) -> Wish | None:
        """Return what a device should run.

        Args:
            device: Which.
            runs: The bundle that it says it runs now.
            told: The bundles that it was told to run up to now.
        """
        if device.retired_at is not None or device.channel is None:
            return None
        place = (device.project_id, device.channel)
        row = self.rollouts.get(place)
        course = None if row is None else course_of(row)
        # Saying that it runs what it was never told takes no device into a rollout that stands.
        runs = runs if runs in told else None
        return wish_of(device.id, device.pins, self.channels.get(place), course, runs)


def is_online(last_seen_at: float | None, heartbeat_s: int, now: float) -> bool:
    """Say whether a device was heard of within three heartbeats."""
    return last_seen_at is not None and now - last_seen_at <= MISSED_HEARTBEATS * heartbeat_s


def follows(channel: str) -> ColumnElement[bool]:
    """Return the condition that a device, joined with its group, follows a channel."""
    return _CHANNEL.in_([channel])


def read_facts(session: Session, *conditions: ColumnElement[bool]) -> list[DeviceFacts]:
    """Return what decides about the devices that conditions name."""
    wanted = (
        select(*_COLUMNS)
        .join(DeviceStateRow, DeviceStateRow.device_id == DeviceRow.id)
        # A device that is retired may outlive its group.
        .outerjoin(DeviceGroupRow, IN_GROUP)
        .where(*conditions)
    )
    return [
        DeviceFacts(
            id=row[0],
            key_id=row[1],
            project_id=row[2],
            group=row[3],
            retired_at=row[4],
            channel=row[5],
            pins=(row[6], row[7]),
            fallback_model=row[8],
            heartbeat_s=row[9] or DEFAULT_HEARTBEAT_S,
            runs=row[10],
            told=read_told(row[11]),
            last_seen_at=row[12],
        )
        for row in session.execute(wanted)
    ]


def read_book(session: Session, project_ids: Collection[str]) -> FleetBook:
    """Return channels and unfinished rollouts of some projects."""
    channels = session.execute(
        select(
            DeviceChannelRow.project_id, DeviceChannelRow.name, DeviceChannelRow.bundle_id
        ).where(DeviceChannelRow.project_id.in_(project_ids))
    )
    rollouts = session.scalars(
        select(DeviceRolloutRow).where(
            DeviceRolloutRow.project_id.in_(project_ids), DeviceRolloutRow.status.not_in(_OVER)
        )
    )
    return FleetBook(
        channels={(project_id, name): bundle_id for project_id, name, bundle_id in channels},
        rollouts={(row.project_id, row.channel): row for row in rollouts},
    )
