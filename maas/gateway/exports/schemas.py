"""Exports on the wire. Ours: OpenAI's API has nothing like them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from maas.edge.export.spec import (
    BUNDLE_NAME,
    AdapterMode,
    Precision,
    QualityDemand,
    ShrinkDemand,
    Target,
)
from maas.edge.runtime.bundle.manifest import MAX_ADAPTERS
from maas.gateway.organization.wire import Body
from maas.store.export_records import Export, ExportEvent

_Name = Annotated[str, Field(min_length=1, max_length=255)]


class ExportBody(Body):
    """A new export.

    Attributes:
        model: Of the catalogue, a tuned model of the project, or an alias.
        adapter_mode: ``merge`` puts one adapter into the weights; ``runtime`` keeps each as a part
            of the bundle, to be chosen when it is asked.
        adapters: Tuned models of the same base, or aliases.
        shrink: What it should lose first.
    """

    model: _Name
    target: Target = "cpu"
    precision: Precision = "int4"
    name: Annotated[str | None, Field(pattern=BUNDLE_NAME)] = None
    adapter_mode: AdapterMode = "merge"
    adapters: Annotated[tuple[_Name, ...], Field(max_length=MAX_ADAPTERS)] = ()
    shrink: ShrinkDemand | None = None
    quality: QualityDemand = QualityDemand()
    metadata: dict[str, str] | None = None


class ExportObject(BaseModel):
    """An export; ``bundle_id`` is there once it succeeded.

    Attributes:
        adapters: Tuned models chosen at run time, by their names in the bundle.
        estimate: Memory, disk, seconds and cost, before it was queued.
        used_seconds: That it was worked on; what it is charged for.
    """

    object: Literal["export"] = "export"
    id: str
    created_at: int
    finished_at: int | None
    status: str
    model: str
    base_model: str
    name: str
    target: str
    precision: str
    adapter_mode: str
    adapters: Mapping[str, str]
    shrink: Mapping[str, Any] | None
    quality: Mapping[str, Any]
    estimate: Mapping[str, Any]
    used_seconds: float
    progress: Mapping[str, Any] | None
    bundle_id: str | None
    error: Mapping[str, Any] | None
    metadata: Mapping[str, str]


class ExportEventObject(BaseModel):
    """Something an export told."""

    object: Literal["export.event"] = "export.event"
    id: str
    created_at: int
    level: str
    message: str


def shown(export: Export) -> ExportObject:
    """Return an export on the wire."""
    return ExportObject(
        id=export.id,
        created_at=int(export.created_at),
        finished_at=None if export.finished_at is None else int(export.finished_at),
        status=export.status.value,
        model=export.model_id,
        base_model=export.base_model_id,
        name=export.name,
        target=export.target,
        precision=export.precision,
        adapter_mode=export.adapter_mode,
        adapters=export.adapters,
        shrink=export.shrink,
        quality=export.quality,
        estimate=export.estimate,
        used_seconds=int(export.used_s * 1000) / 1000,
        progress=export.progress,
        bundle_id=export.bundle_id,
        error=export.error,
        metadata=export.labels,
    )


def shown_event(event: ExportEvent) -> ExportEventObject:
    """Return an event on the wire."""
    return ExportEventObject(
        id=event.id, created_at=int(event.created_at), level=event.level, message=event.message
    )
