"""Tables of the fleet: groups, channels, devices, enrolment codes, rollouts, what devices tell."""

from typing import Any, ClassVar

from sqlalchemy import JSON, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from maas.store.tables import Base
from maas.store.text import ShortText


class DeviceGroupRow(Base):
    """Devices that are treated alike; found by name in its project."""

    __tablename__ = "device_groups"
    __audit__: ClassVar[str | None] = "device.group"
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    channel: Mapped[str]
    bundle_id: Mapped[str | None] = mapped_column(ForeignKey("bundles.id"))
    fallback_model: Mapped[str | None]
    heartbeat_s: Mapped[int]
    labels: Mapped[dict[str, Any]]
    created_at: Mapped[float]
    __table_args__ = (UniqueConstraint("project_id", "name", name="uq_device_groups_project_id"),)


class DeviceChannelRow(Base):
    """A line of releases: the bundle that its devices run."""

    __tablename__ = "device_channels"
    __audit__: ClassVar[str | None] = "device.channel"
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    bundle_id: Mapped[str | None] = mapped_column(ForeignKey("bundles.id"))
    created_at: Mapped[float]
    updated_at: Mapped[float]
    __table_args__ = (UniqueConstraint("project_id", "name", name="uq_device_channels_project_id"),)


class DeviceRow(Base):
    """A device as the control plane has it; what it tells is in ``device_states``."""

    __tablename__ = "devices"
    __audit__: ClassVar[str | None] = "device"
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    group_name: Mapped[str]
    channel: Mapped[str | None]
    bundle_id: Mapped[str | None] = mapped_column(ForeignKey("bundles.id"))
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), unique=True)
    facts: Mapped[dict[str, Any]]
    labels: Mapped[dict[str, Any]]
    created_at: Mapped[float]
    retired_at: Mapped[float | None]
    __table_args__ = (
        Index("ix_devices_project_id_created_at", "project_id", "created_at"),
        Index("ix_devices_project_id_group_name", "project_id", "group_name"),
    )


class DeviceStateRow(Base):
    """What a device told last, one row a device. Heartbeats are no change of the control plane.

    ``told`` holds the bundles that it was told to run, newest last (``maas.store.told``);
    ``report`` is the whole of its last heartbeat.
    """

    __tablename__ = "device_states"
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    last_seen_at: Mapped[float | None]
    bundle_id: Mapped[str | None]
    told: Mapped[list[str]]
    load_s: Mapped[float | None]
    prefill_tok_s: Mapped[float | None]
    decode_tok_s: Mapped[float | None]
    report: Mapped[dict[str, Any] | None]


class EnrolmentCodeRow(Base):
    """A code that makes one device; only its hash is here, and the answer it gave, sealed."""

    __tablename__ = "device_enrolment_codes"
    __audit__: ClassVar[str | None] = "device.enrolment_code"
    __audit_hidden__: ClassVar[frozenset[str]] = frozenset({"digest", "nonce_digest", "sealed_key"})
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    group_name: Mapped[str]
    name: Mapped[str | None]
    digest: Mapped[str] = mapped_column(unique=True)
    labels: Mapped[dict[str, Any]]
    created_at: Mapped[float]
    expires_at: Mapped[float]
    used_at: Mapped[float | None] = mapped_column(index=True)
    device_id: Mapped[str | None] = mapped_column(ForeignKey("devices.id"))
    nonce_digest: Mapped[str | None]
    sealed_key: Mapped[str | None] = mapped_column(ShortText(1024))


class DeviceRolloutRow(Base):
    """A bundle on its way to the devices of a channel, stage by stage.

    ``num_succeeded`` counts devices over all attempts, ``num_failed`` those of this attempt;
    ``counts`` is written when it ends.
    """

    __tablename__ = "device_rollouts"
    __audit__: ClassVar[str | None] = "device.rollout"
    # What devices report is no change of the control plane; stage and status are.
    __audit_ignored__: ClassVar[frozenset[str]] = frozenset({"num_succeeded", "num_failed"})
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    channel: Mapped[str]
    bundle_id: Mapped[str] = mapped_column(ForeignKey("bundles.id"))
    previous_bundle_id: Mapped[str | None]
    stages: Mapped[list[Any]] = mapped_column(JSON)
    max_failure_percent: Mapped[float]
    min_reports: Mapped[int]
    attempt: Mapped[int]
    stage: Mapped[int]
    stage_began_at: Mapped[float]
    status: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str | None] = mapped_column(ShortText(1024))
    num_succeeded: Mapped[int]
    num_failed: Mapped[int]
    counts: Mapped[dict[str, Any] | None]
    labels: Mapped[dict[str, Any]]
    created_at: Mapped[float]
    updated_at: Mapped[float]
    finished_at: Mapped[float | None]
    __table_args__ = (Index("ix_device_rollouts_project_id_channel", "project_id", "channel"),)


class DeviceUpdateRow(Base):
    """How one attempt of a device at a bundle ended: written once, whatever it tells later."""

    __tablename__ = "device_updates"
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    bundle_id: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    rollout_id: Mapped[str | None] = mapped_column(ForeignKey("device_rollouts.id"), index=True)
    is_success: Mapped[bool]
    phase: Mapped[str | None]
    error: Mapped[str | None] = mapped_column(ShortText(4096))
    created_at: Mapped[float]


class DeviceEventRow(Base):
    """Something that happened to a device, once under its key."""

    __tablename__ = "device_events"
    id: Mapped[str] = mapped_column(primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"))
    key: Mapped[str]
    created_at: Mapped[float]
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str] = mapped_column(ShortText(4096))
    data: Mapped[dict[str, Any]]
    __table_args__ = (
        UniqueConstraint("device_id", "key", name="uq_device_events_device_id"),
        Index("ix_device_events_device_id_created_at", "device_id", "created_at"),
    )
