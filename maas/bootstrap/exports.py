"""Exports without a server: weights of the catalogue in, a signed bundle out."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from maas.bootstrap.signing import make_signing
from maas.bootstrap.store import open_store
from maas.catalog.catalog import load_catalog
from maas.catalog.machine import probe_machine
from maas.catalog.weights.files import source_access
from maas.core.errors import ConfigError
from maas.core.settings import Settings
from maas.edge.export.estimate import check_export
from maas.edge.export.offered import check_card, check_embedding
from maas.edge.export.spec import (
    AdapterMode,
    ExportResult,
    ExportSpec,
    Precision,
    Progress,
    QualityDemand,
    RuntimeAdapter,
    ShrinkDemand,
    Target,
)
from maas.edge.export.start import run_export
from maas.edge.runtime.bundle.manifest import MAX_ADAPTERS, device_name
from maas.edge.runtime.bundle.signing import load_or_make_key, private_text_of
from maas.engines.prepare import prepare_model
from maas.finetune.adapter_files import describe_adapter
from maas.serving.exports.signing import KEY_FILE


@dataclass(frozen=True)
class ExportDemand:
    """What is asked of a bundle beside target and precision."""

    quality: QualityDemand = field(default_factory=QualityDemand)
    shrink: ShrinkDemand | None = None
    adapter_mode: AdapterMode = "merge"
    adapters: tuple[Path, ...] = ()
    """PEFT folders: one that is merged, or several that are chosen at run time."""
    name: str | None = None
    """Of the bundle; none makes one of model and precision."""


def export_here(  # noqa: PLR0913 - what an export is asked for, all but two by keyword
    settings: Settings,
    model_id: str,
    *,
    target: Target,
    precision: Precision,
    demand: ExportDemand,
    out: Path,
    report: Callable[[Progress], None],
) -> ExportResult:
    """Export a model of the catalogue on this machine.

    Raises:
        ModelNotFound: No card has this id.
        PermissionDenied: Its licence forbids it.
        CapabilityMissing: Models of its class cannot be exported, or not as is asked.
        DoesNotFit: It would run out of memory or disk.
        AdapterRefused: An adapter is none, or does not fit.
        BundleRefused: The bundle keeps too little of the original.
        ConfigError: The key that signs bundles is not to be opened here.
    """
    card = load_catalog(settings.models_dir).get_card(model_id)
    check_card(card)
    if card.task == "embed":
        check_embedding(card.id, precision, demand.quality)
    machine = probe_machine(settings.weights_dir)
    check_export(card, machine.memory_available_bytes, machine.disk_free_bytes, demand.shrink)
    adapters = _adapters(demand)
    signing_key = SecretStr(_signing_key(settings))
    report(Progress(phase="weights", percent=0, message="preparing the weights"))
    prepared = prepare_model(
        card,
        weights_dir=settings.weights_dir,
        progress=lambda _: None,
        allow_remote_code=settings.allow_remote_code,
        allow_pickle=settings.allow_pickle,
        access=source_access(settings),
    )
    is_merged = demand.adapter_mode == "merge" and bool(adapters)
    lineage = {"source": prepared.manifest.source, "commit": prepared.manifest.commit}
    spec = ExportSpec(
        model_id=card.id,
        base_model_id=card.id,
        model_dir=prepared.model_dir,
        adapter_dir=adapters[0].folder if is_merged else None,
        adapters=() if is_merged else adapters,
        target=target,
        precision=precision,
        name=demand.name or f"{card.id}-{precision}",
        work_dir=settings.home / "scratch" / f"export-{card.id}-{time.time_ns()}",
        out_path=out.absolute(),
        signing_key=signing_key,
        task=card.task,
        max_model_len=card.context,
        tool_call_parser=card.tool_call_parser,
        licence=card.licence.model_dump(mode="json"),
        lineage={
            **lineage,
            **({"adapters": {adapters[0].name: adapters[0].lineage}} if is_merged else {}),
        },
        quality=demand.quality,
        shrink=demand.shrink,
        created_at=float(int(time.time())),
    )
    return run_export(spec, report)


def _signing_key(settings: Settings) -> str:
    """Return the platform's key where this home has a store, and else the one of its file."""
    if not settings.has_store:
        return private_text_of(load_or_make_key(settings.home / KEY_FILE))
    store = open_store(settings)
    try:
        return make_signing(settings, store).private_key()
    finally:
        store.database.close()


def _adapters(demand: ExportDemand) -> tuple[RuntimeAdapter, ...]:
    """Return adapters, checked, under the names of their folders.

    Raises:
        AdapterRefused: One is none.
        ConfigError: They do not go together.
    """
    num = len(demand.adapters)
    if demand.adapter_mode == "merge" and num > 1:
        raise ConfigError("--adapter-mode merge takes one --adapter; runtime takes several")
    if demand.adapter_mode == "runtime" and not 0 < num <= MAX_ADAPTERS:
        raise ConfigError(f"--adapter-mode runtime takes 1 to {MAX_ADAPTERS} adapters")
    found = {device_name(folder.resolve().name): folder for folder in demand.adapters}
    if len({name.casefold() for name in found}) < num:
        raise ConfigError("two adapters would have the same name: rename their folders")
    return tuple(
        RuntimeAdapter(
            name=name,
            folder=folder.absolute(),
            # Files say nothing of it.
            lineage={"adapter_sha256": describe_adapter(folder).id, "licence": "unknown"},
        )
        for name, folder in found.items()
    )
