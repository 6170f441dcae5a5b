"""What makes a bundle of an export: weights in place, a process that makes it, its bytes kept."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr

from maas.catalog.card import ModelCard
from maas.catalog.catalog import Catalog
from maas.catalog.machine import Machine
from maas.catalog.weights.files import source_access
from maas.core.errors import CapabilityMissing, DoesNotFit, EngineError
from maas.core.settings import Settings
from maas.edge.export.estimate import check_export
from maas.edge.export.spec import (
    ExportResult,
    ExportSpec,
    Precision,
    QualityDemand,
    RuntimeAdapter,
    ShrinkDemand,
    Target,
)
from maas.edge.export.start import run_export
from maas.engines.prepare import PreparedModel, prepare_model
from maas.finetune.adapter_files import ADAPTER_NAMES
from maas.finetune.registry import blob_key_of, check_allows_export
from maas.finetune.whole_weights import fetch_weights
from maas.serving.exports.queue import Work
from maas.store.adapters import TunedModel, TunedModelRepository
from maas.store.blobs import Blobs
from maas.store.export_records import Export, MadeBundle

_TARGETS: dict[str, Target] = {name: name for name in get_args(Target)}
_PRECISIONS: dict[str, Precision] = {name: name for name in get_args(Precision)}


BUNDLES = "bundles"
# Of the home: what attempts work in, a folder each.
SCRATCH = "scratch"


def bundle_blob_key(bundle_id: str) -> str:
    """Return where a bundle's bytes are stored."""
    return f"{BUNDLES}/{bundle_id}"


@dataclass(frozen=True)
class BundleMaker:
    """Makes bundles on this machine.

    Attributes:
        probe: Reads this machine.
        num_training: Jobs that train now: they and an export would take each other's memory.
        signing_key: Returns the private key for bundles, in hexadecimal.
        run: Runs one export in a process of its own.
    """

    settings: Settings
    catalog: Catalog
    tuned_models: TunedModelRepository
    blobs: Blobs
    probe: Callable[[], Machine]
    num_training: Callable[[], int]
    signing_key: Callable[[], str]
    run: Callable[..., ExportResult] = run_export

    def refuse(self, export: Export) -> str | None:
        """Return why an export cannot start now; nothing if it can."""
        if self.num_training():
            return "a job trains on this machine"
        card = self.catalog.get(export.base_model_id)
        if card is None:
            # Nothing to wait for: making it says what is wrong.
            return None
        machine = self.probe()
        try:
            check_export(
                card, machine.memory_available_bytes, machine.disk_free_bytes, _shrink(export)
            )
        except DoesNotFit as error:
            return error.message
        return None

    def make(self, export: Export, work: Work) -> MadeBundle:
        """Make it; blocks, and ends soon after ``work`` was stopped.

        Raises:
            MaasError: It failed.
        """
        scratch = self.settings.home / SCRATCH
        folder = scratch / f"{export.id}-{export.attempt}"
        for earlier in scratch.glob(f"{export.id}-*"):
            # Its runner is dead: this one took the export from it.
            shutil.rmtree(earlier, ignore_errors=True)
        try:
            work.report({"phase": "weights", "percent": 0, "message": "preparing the weights"})
            spec = self._spec(export, folder)
            if work.is_stopped:
                raise EngineError("the export was stopped")
            result = self.run(
                spec,
                lambda progress: work.report(progress.model_dump()),
                on_start=work.end_with,
            )
            if work.is_stopped:
                raise EngineError("the export was stopped")
            work.report({"phase": "storing", "percent": 99, "message": "storing the bundle"})
            kept = self.blobs.put_file(bundle_blob_key(result.bundle_id), result.bundle_path)
            return MadeBundle(
                result.bundle_id, export.name, kept.key, kept.size_bytes, result.manifest
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _tuned(self, model_id: str) -> TunedModel:
        model = self.tuned_models.find(model_id)
        if model is None or model.deleted_at is not None:
            raise CapabilityMissing(f"the model {model_id!r} was deleted", param="model")
        check_allows_export(model)
        return model

    def _spec(self, export: Export, folder: Path) -> ExportSpec:
        card = self.catalog.get_card(export.base_model_id)
        # Before all that takes long: without it, nothing comes of that.
        signing_key = SecretStr(self.signing_key())
        tuned = None if export.model_id == card.id else self._tuned(export.model_id)
        prepared = self._prepared(card, tuned)
        adapter_dir = None
        if tuned is not None and tuned.adapter_id is not None:
            adapter_dir = self._fetched(tuned.adapter_id, folder / "adapter")
        licence: Mapping[str, Any] = card.licence.model_dump(mode="json")
        return ExportSpec(
            model_id=export.model_id,
            base_model_id=card.id,
            model_dir=prepared.model_dir,
            adapter_dir=adapter_dir,
            adapters=tuple(
                self._at_run_time(name, self._tuned(model_id), folder)
                for name, model_id in sorted(export.adapters.items())
            ),
            target=_TARGETS[export.target],
            precision=_PRECISIONS[export.precision],
            name=export.name,
            work_dir=folder / "work",
            out_path=folder / "bundle.maas",
            signing_key=signing_key,
            task=card.task,
            max_model_len=card.context,
            tool_call_parser=card.tool_call_parser,
            licence=dict(licence if tuned is None else tuned.licence),
            lineage={
                # The export's name makes the bundle's id its own: no two projects share one.
                "export": export.id,
                "source": prepared.manifest.source,
                "commit": prepared.manifest.commit,
                **({} if tuned is None else _lineage(tuned)),
            },
            quality=QualityDemand.model_validate(dict(export.quality)),
            shrink=_shrink(export),
            created_at=float(int(export.created_at)),
        )

    def _prepared(self, card: ModelCard, tuned: TunedModel | None) -> PreparedModel:
        """Return the base's weights, or those of a model that was tuned whole."""
        settings = self.settings
        if tuned is not None and tuned.weights_key is not None:
            weights = tuned.weights_key.rpartition("/")[2]
            return fetch_weights(self.blobs, weights, settings.tuned_weights_dir)
        return prepare_model(
            card,
            weights_dir=settings.weights_dir,
            progress=lambda _: None,
            allow_remote_code=settings.allow_remote_code,
            allow_pickle=settings.allow_pickle,
            access=source_access(settings),
        )

    def _fetched(self, adapter_id: str, folder: Path) -> Path:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.blobs.get_folder(blob_key_of(adapter_id), folder, ADAPTER_NAMES)
        return folder

    def _at_run_time(self, name: str, tuned: TunedModel, folder: Path) -> RuntimeAdapter:
        if tuned.adapter_id is None:
            raise CapabilityMissing(f"{tuned.id} is no adapter", param="adapters")
        lineage = {"model": tuned.id, "licence": dict(tuned.licence), **_lineage(tuned)}
        fetched = self._fetched(tuned.adapter_id, folder / "adapters" / name)
        return RuntimeAdapter(name=name, folder=fetched, lineage=lineage)


def _shrink(export: Export) -> ShrinkDemand | None:
    return None if export.shrink is None else ShrinkDemand.model_validate(export.shrink)


def _lineage(tuned: TunedModel) -> dict[str, Any]:
    content = (
        {"weights_sha256": tuned.weights_key.rpartition("/")[2]}
        if tuned.weights_key is not None
        else {"adapter_sha256": tuned.adapter_id}
    )
    return {"tuned": dict(tuned.lineage), "job": tuned.job_id, **content}
