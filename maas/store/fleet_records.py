"""The fleet as it leaves the store: frozen records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maas.store.fleet_tables import (
    DeviceChannelRow,
    DeviceEventRow,
    DeviceGroupRow,
    DeviceRolloutRow,
    EnrolmentCodeRow,
)
from maas.store.rollout_rules import Course, RolloutStatus, Stage, Wish

DEFAULT_GROUP, DEFAULT_CHANNEL = "default", "stable"
DEFAULT_HEARTBEAT_S = 60
# A device is online until it has been silent for so many heartbeats.
MISSED_HEARTBEATS = 3


@dataclass(frozen=True)
class Group:
    """Devices that are treated alike.

    Attributes:
        bundle_id: What they run whatever their channel has; none lets the channel decide.
        fallback_model: The one model that their keys may ask.
    """

    name: str
    channel: str
    bundle_id: str | None
    fallback_model: str | None
    heartbeat_s: int
    created_at: float
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Channel:
    """A line of releases."""

    name: str
    bundle_id: str | None
    created_at: float
    updated_at: float


@dataclass(frozen=True)
class Device:
    """A device, with what it told last and what it should run."""

    id: str
    project_id: str
    name: str
    group: str
    channel: str | None
    bundle_id: str | None
    key_id: str
    facts: Mapping[str, Any]
    labels: Mapping[str, str]
    created_at: float
    retired_at: float | None
    last_seen_at: float | None
    is_online: bool
    report: Mapping[str, Any] | None
    wish: Wish | None


@dataclass(frozen=True)
class DeviceEvent:
    """Something that happened to a device."""

    id: str
    device_id: str
    created_at: float
    level: str
    type: str
    message: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class EnrolmentCode:
    """A code that makes one device; the code itself is not here."""

    id: str
    group: str
    name: str | None
    created_at: float
    expires_at: float
    used_at: float | None
    device_id: str | None
    labels: Mapping[str, str]


@dataclass(frozen=True)
class NewRollout:
    """A rollout that is asked for, checked."""

    channel: str
    bundle_id: str
    stages: tuple[Stage, ...]
    max_failure_percent: float
    min_reports: int
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Counts:
    """Devices of a rollout.

    Attributes:
        targeted: That follow its channel.
        eligible: That are in its stage.
        pending: In its stage, and nothing is known of them yet.
        missing: Of these, those that fell silent after they were told to take the bundle.
    """

    targeted: int
    eligible: int
    succeeded: int
    failed: int
    pending: int
    # Counts that were kept by an earlier version have none.
    missing: int = 0


@dataclass(frozen=True)
class Rollout:
    """A bundle on its way to the devices of a channel."""

    id: str
    project_id: str
    channel: str
    bundle_id: str
    previous_bundle_id: str | None
    stages: tuple[Stage, ...]
    max_failure_percent: float
    min_reports: int
    attempt: int
    stage: int
    stage_began_at: float
    status: RolloutStatus
    reason: str | None
    counts: Counts
    labels: Mapping[str, str]
    created_at: float
    updated_at: float
    finished_at: float | None


def group_of(row: DeviceGroupRow) -> Group:
    """Return the row as a frozen record."""
    return Group(**{name: getattr(row, name) for name in Group.__dataclass_fields__})


def channel_of(row: DeviceChannelRow) -> Channel:
    """Return the row as a frozen record."""
    return Channel(**{name: getattr(row, name) for name in Channel.__dataclass_fields__})


def event_of(row: DeviceEventRow) -> DeviceEvent:
    """Return the row as a frozen record."""
    return DeviceEvent(**{name: getattr(row, name) for name in DeviceEvent.__dataclass_fields__})


def code_of(row: EnrolmentCodeRow) -> EnrolmentCode:
    """Return the row as a frozen record."""
    return EnrolmentCode(
        id=row.id,
        group=row.group_name,
        name=row.name,
        created_at=row.created_at,
        expires_at=row.expires_at,
        used_at=row.used_at,
        device_id=row.device_id,
        labels=row.labels,
    )


def stages_of(row: DeviceRolloutRow) -> tuple[Stage, ...]:
    """Return a rollout's stages."""
    return tuple(Stage(item["percent"], item["min_s"]) for item in row.stages)


def course_of(row: DeviceRolloutRow) -> Course:
    """Return what says what the devices of a rollout should run."""
    return Course(
        id=row.id,
        bundle_id=row.bundle_id,
        status=RolloutStatus(row.status),
        attempt=row.attempt,
        percent=row.stages[row.stage]["percent"],
    )


def rollout_of(row: DeviceRolloutRow, counts: Counts) -> Rollout:
    """Return the row as a frozen record."""
    values: dict[str, Any] = {name: getattr(row, name) for name in Rollout.__dataclass_fields__}
    values |= {"status": RolloutStatus(row.status), "stages": stages_of(row), "counts": counts}
    return Rollout(**values)
