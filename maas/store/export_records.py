"""Exports as they leave the store: frozen records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from maas.store.edge_tables import ExportEventRow, ExportRow


class ExportStatus(StrEnum):
    """Where an export is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


OVER = frozenset({ExportStatus.SUCCEEDED, ExportStatus.FAILED, ExportStatus.CANCELLED})


@dataclass(frozen=True)
class NewExport:
    """An export that was asked for, checked.

    Attributes:
        quality: What the bundle must keep of the original.
        adapter_mode: Whether tuned weights are merged, or stay what they are.
        adapters: Tuned models chosen at run time, by their names on the device.
        shrink: What the model should lose first.
        estimate: Memory, disk, time and cost, as they were shown.
    """

    project_id: str
    key_id: str
    request_id: str
    model_id: str
    base_model_id: str
    name: str
    target: str
    precision: str
    quality: Mapping[str, Any] = field(default_factory=dict[str, Any])
    adapter_mode: str = "merge"
    adapters: Mapping[str, str] = field(default_factory=dict[str, str])
    shrink: Mapping[str, Any] | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    estimate: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Export:
    """An export as it is now.

    Attributes:
        used_s: Seconds that its last runner was seen at work.
    """

    id: str
    project_id: str
    key_id: str
    request_id: str
    created_at: float
    model_id: str
    base_model_id: str
    name: str
    target: str
    precision: str
    adapter_mode: str
    adapters: Mapping[str, str]
    shrink: Mapping[str, Any] | None
    quality: Mapping[str, Any]
    labels: Mapping[str, str]
    estimate: Mapping[str, Any]
    status: ExportStatus
    attempt: int
    runner_seen_at: float | None
    used_s: float
    num_failures: int
    retry_at: float | None
    started_at: float | None
    finished_at: float | None
    progress: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    bundle_id: str | None


@dataclass(frozen=True)
class ExportEvent:
    """Something an export told, once under its key."""

    id: str
    export_id: str
    key: str
    created_at: float
    level: str
    message: str


@dataclass(frozen=True)
class MadeBundle:
    """A bundle whose bytes are stored already."""

    id: str
    name: str
    blob_key: str
    size_bytes: int
    manifest: Mapping[str, Any]


def export_of(row: ExportRow) -> Export:
    """Return the row as a frozen record."""
    values: dict[str, Any] = {name: getattr(row, name) for name in Export.__dataclass_fields__}
    values["status"] = ExportStatus(row.status)
    return Export(**values)


def event_of(row: ExportEventRow) -> ExportEvent:
    """Return the row as a frozen record."""
    return ExportEvent(**{name: getattr(row, name) for name in ExportEvent.__dataclass_fields__})
