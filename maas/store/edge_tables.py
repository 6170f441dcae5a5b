"""Tables of the edge: exports, what they tell, the bundles that come of them, and their key."""

from typing import Any, ClassVar

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from maas.store.tables import Base
from maas.store.text import ShortText


class BundleRow(Base):
    """A signed bundle by its content; its bytes are the blob ``blob_key``."""

    __tablename__ = "bundles"
    __audit__: ClassVar[str | None] = "bundle"
    __audit_ignored__: ClassVar[frozenset[str]] = frozenset({"blob_key", "manifest"})
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str]
    model_id: Mapped[str]
    blob_key: Mapped[str] = mapped_column(ShortText(1024))
    size_bytes: Mapped[int]
    manifest: Mapped[dict[str, Any]]
    created_at: Mapped[float]
    deleted_at: Mapped[float | None]


class SigningKeyRow(Base):
    """A key that signs; the private half is sealed."""

    __tablename__ = "signing_keys"
    __audit__: ClassVar[str | None] = "signing_key"
    __audit_hidden__: ClassVar[frozenset[str]] = frozenset({"sealed_key"})
    id: Mapped[str] = mapped_column(primary_key=True)
    public_key: Mapped[str]
    sealed_key: Mapped[str] = mapped_column(ShortText(1024))
    created_at: Mapped[float]


class ExportRow(Base):
    """An export: what was asked for, and how it fares.

    ``attempt`` counts runners: what an earlier one writes is refused.
    """

    __tablename__ = "exports"
    __audit__: ClassVar[str | None] = "export"
    # What a runner saw is no change of the control plane; status is.
    __audit_ignored__: ClassVar[frozenset[str]] = frozenset(
        {"attempt", "runner_seen_at", "num_failures", "retry_at", "progress", "estimate", "used_s"}
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    key_id: Mapped[str]
    request_id: Mapped[str]
    created_at: Mapped[float] = mapped_column(index=True)
    model_id: Mapped[str]
    base_model_id: Mapped[str]
    name: Mapped[str]
    target: Mapped[str]
    precision: Mapped[str]
    adapter_mode: Mapped[str]
    adapters: Mapped[dict[str, Any]]
    shrink: Mapped[dict[str, Any] | None]
    quality: Mapped[dict[str, Any]]
    labels: Mapped[dict[str, Any]]
    estimate: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(index=True)
    attempt: Mapped[int]
    runner_seen_at: Mapped[float | None]
    used_s: Mapped[float]
    num_failures: Mapped[int]
    retry_at: Mapped[float | None]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    progress: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    bundle_id: Mapped[str | None] = mapped_column(ForeignKey("bundles.id"))


class ExportEventRow(Base):
    """Something an export told, once: a runner that starts again tells it under the same key."""

    __tablename__ = "export_events"
    id: Mapped[str] = mapped_column(primary_key=True)
    export_id: Mapped[str] = mapped_column(ForeignKey("exports.id"))
    key: Mapped[str]
    created_at: Mapped[float]
    level: Mapped[str]
    message: Mapped[str] = mapped_column(ShortText(4096))
    __table_args__ = (
        UniqueConstraint("export_id", "key", name="uq_export_events_export_id_key"),
        # Each telling asks for the newest one, and lists are in this order.
        Index("ix_export_events_export_id_created_at", "export_id", "created_at"),
    )
