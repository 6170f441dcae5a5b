"""The fleet on the wire. Ours: OpenAI's API has nothing like it."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from maas.gateway.organization.pages import ListPage
from maas.gateway.organization.wire import Body, Name, seconds
from maas.store.fleet_records import (
    DEFAULT_CHANNEL,
    DEFAULT_GROUP,
    DEFAULT_HEARTBEAT_S,
    Channel,
    Counts,
    Device,
    DeviceEvent,
    EnrolmentCode,
    Group,
    Rollout,
)
from maas.store.pages import Page

# Names are parts of paths.
Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Ref = Annotated[str, Field(min_length=1, max_length=255)]
Metadata = dict[str, str] | None
HeartbeatSeconds = Annotated[int, Field(strict=True, ge=1, le=86_400)]


class GroupBody(Body):
    """A new group."""

    name: Slug
    channel: Slug = DEFAULT_CHANNEL
    bundle_id: Ref | None = None
    fallback_model: Ref | None = None
    heartbeat_s: HeartbeatSeconds = DEFAULT_HEARTBEAT_S
    metadata: Metadata = None


class GroupChangeBody(Body):
    """What changes of a group; null takes a pin or the fallback away."""

    channel: Slug | None = None
    bundle_id: Ref | None = None
    fallback_model: Ref | None = None
    heartbeat_s: HeartbeatSeconds | None = None
    metadata: Metadata = None


class ChannelBody(Body):
    """The bundle of a channel; null takes it away."""

    bundle_id: Ref | None


class DeviceChangeBody(Body):
    """What changes of a device; null takes its own channel or its pin away."""

    name: Name | None = None
    group: Slug | None = None
    channel: Slug | None = None
    bundle_id: Ref | None = None
    metadata: Metadata = None


class CodeBody(Body):
    """A new enrolment code."""

    group: Slug = DEFAULT_GROUP
    name: Name | None = None
    expires_in_s: Annotated[int, Field(strict=True, ge=60, le=2_592_000)] = 3600
    metadata: Metadata = None


class StageBody(Body):
    """A stage of a rollout."""

    percent: Annotated[float, Field(gt=0, le=100)]
    min_s: Annotated[float, Field(ge=0, le=2_592_000)] = 0.0


def _careful() -> list[StageBody]:
    return [StageBody(percent=percent) for percent in (1, 10, 50, 100)]


class RolloutBody(Body):
    """A new rollout; stages grow, and the last one is all devices."""

    channel: Slug
    bundle_id: Ref
    stages: Annotated[list[StageBody], Field(min_length=1, max_length=20, default_factory=_careful)]
    max_failure_percent: Annotated[float, Field(ge=0, le=100)] = 5.0
    min_reports: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 1
    metadata: Metadata = None


class GroupObject(BaseModel):
    """A group; ``bundle_id`` is a pin."""

    object: Literal["device.group"] = "device.group"
    name: str
    channel: str
    bundle_id: str | None
    fallback_model: str | None
    heartbeat_s: int
    created_at: int
    metadata: Mapping[str, str]


class ChannelObject(BaseModel):
    """A channel."""

    object: Literal["device.channel"] = "device.channel"
    name: str
    bundle_id: str | None
    created_at: int
    updated_at: int


class DeviceObject(BaseModel):
    """A device; ``reported`` is its last heartbeat, ``facts`` what it said at its enrolment."""

    object: Literal["device"] = "device"
    id: str
    name: str
    group: str
    channel: str | None
    bundle_id: str | None
    status: Literal["enrolled", "retired"]
    created_at: int
    last_seen_at: int | None
    is_online: bool
    facts: Mapping[str, Any]
    reported: Mapping[str, Any] | None
    desired_bundle_id: str | None
    metadata: Mapping[str, str]


class DeviceEventObject(BaseModel):
    """Something that happened to a device."""

    object: Literal["device.event"] = "device.event"
    id: str
    device_id: str
    created_at: int
    level: str
    type: str
    message: str
    data: Mapping[str, Any]


class CodeObject(BaseModel):
    """An enrolment code; the code itself is in the answer that made it, and nowhere else."""

    object: Literal["device.enrolment_code"] = "device.enrolment_code"
    id: str
    group: str
    name: str | None
    created_at: int
    expires_at: int
    used_at: int | None
    device_id: str | None
    metadata: Mapping[str, str]
    code: str | None = None


class CountsObject(BaseModel):
    """Devices of a rollout."""

    targeted: int
    eligible: int
    succeeded: int
    failed: int
    pending: int
    missing: int


class StageObject(BaseModel):
    """A stage."""

    percent: float
    min_s: float


class RolloutObject(BaseModel):
    """A rollout; ``stage`` counts from 0."""

    object: Literal["device.rollout"] = "device.rollout"
    id: str
    channel: str
    bundle_id: str
    previous_bundle_id: str | None
    stages: Sequence[StageObject]
    max_failure_percent: float
    min_reports: int
    attempt: int
    stage: int
    status: str
    reason: str | None
    counts: CountsObject
    created_at: int
    updated_at: int
    finished_at: int | None
    metadata: Mapping[str, str]


class SpeedObject(BaseModel):
    """The median of what devices measured, and of how many."""

    median: float | None
    num_devices: int


class SummaryObject(BaseModel):
    """How many devices do what; a bundle of ``none`` is no bundle."""

    object: Literal["device.summary"] = "device.summary"
    by_status: Mapping[str, int]
    online: int
    by_bundle: Mapping[str, int]
    by_group: Mapping[str, int]
    speed: Mapping[str, SpeedObject]


def shown_group(group: Group) -> GroupObject:
    """Return a group on the wire."""
    return GroupObject(
        name=group.name,
        channel=group.channel,
        bundle_id=group.bundle_id,
        fallback_model=group.fallback_model,
        heartbeat_s=group.heartbeat_s,
        created_at=int(group.created_at),
        metadata=group.labels,
    )


def shown_channel(channel: Channel) -> ChannelObject:
    """Return a channel on the wire."""
    return ChannelObject(
        name=channel.name,
        bundle_id=channel.bundle_id,
        created_at=int(channel.created_at),
        updated_at=int(channel.updated_at),
    )


def shown_device(device: Device) -> DeviceObject:
    """Return a device on the wire."""
    return DeviceObject(
        id=device.id,
        name=device.name,
        group=device.group,
        channel=device.channel,
        bundle_id=device.bundle_id,
        status="enrolled" if device.retired_at is None else "retired",
        created_at=int(device.created_at),
        last_seen_at=seconds(device.last_seen_at),
        is_online=device.is_online,
        facts=device.facts,
        reported=device.report,
        desired_bundle_id=None if device.wish is None else device.wish.bundle_id,
        metadata=device.labels,
    )


def shown_event(event: DeviceEvent) -> DeviceEventObject:
    """Return an event on the wire."""
    return DeviceEventObject(
        id=event.id,
        device_id=event.device_id,
        created_at=int(event.created_at),
        level=event.level,
        type=event.type,
        message=event.message,
        data=event.data,
    )


def shown_code(code: EnrolmentCode, secret: str | None = None) -> CodeObject:
    """Return an enrolment code on the wire."""
    return CodeObject(
        id=code.id,
        group=code.group,
        name=code.name,
        created_at=int(code.created_at),
        expires_at=int(code.expires_at),
        used_at=seconds(code.used_at),
        device_id=code.device_id,
        metadata=code.labels,
        code=secret,
    )


def shown_rollout(rollout: Rollout) -> RolloutObject:
    """Return a rollout on the wire."""
    return RolloutObject(
        id=rollout.id,
        channel=rollout.channel,
        bundle_id=rollout.bundle_id,
        previous_bundle_id=rollout.previous_bundle_id,
        stages=[StageObject(percent=item.percent, min_s=item.min_s) for item in rollout.stages],
        max_failure_percent=rollout.max_failure_percent,
        min_reports=rollout.min_reports,
        attempt=rollout.attempt,
        stage=rollout.stage,
        status=rollout.status.value,
        reason=rollout.reason,
        counts=_shown_counts(rollout.counts),
        created_at=int(rollout.created_at),
        updated_at=int(rollout.updated_at),
        finished_at=seconds(rollout.finished_at),
        metadata=rollout.labels,
    )


def named_page(page: Page[GroupObject] | Page[ChannelObject]) -> ListPage[Any]:
    """Return a page of things that are known by name: their cursor is a name."""
    names = [item.name for item in page.items]
    return ListPage[Any](
        data=list(page.items),
        first_id=names[0] if names else None,
        last_id=names[-1] if names else None,
        has_more=page.has_more,
    )


def _shown_counts(counts: Counts) -> CountsObject:
    return CountsObject(
        targeted=counts.targeted,
        eligible=counts.eligible,
        succeeded=counts.succeeded,
        failed=counts.failed,
        pending=counts.pending,
        missing=counts.missing,
    )
