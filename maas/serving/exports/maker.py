"""What makes a bundle of an export: weights in place, a process that makes it, its bytes kept."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from maas.catalog.card import ModelCard
from maas.catalog.catalog import Catalog
from maas.catalog.machine import Machine
from maas.catalog.weights.files import source_access
from maas.core.errors import CapabilityMissing, DoesNotFit, EngineError
from maas.core.settings import Settings
from maas.edge.export.estimate import check_export
from maas.edge.export.spec import ExportResult, ExportSpec, Precision, QualityDemand, Target
from maas.edge.export.start import run_export
from maas.engines.prepare import prepare_model
from maas.finetune.adapter_files import ADAPTER_NAMES
from maas.finetune.registry import blob_key_of, check_allows_export
from maas.serving.exports.queue import Work
from maas.store.adapters import TunedModel, TunedModelRepository
from maas.store.blobs import Blobs
from maas.store.export_records import Export, MadeBundle

_TARGETS: dict[str, Target] = {name: name for name in get_args(Target)}
_PRECISIONS: dict[str, Precision] = {name: name for name in get_args(Precision)}


BUNDLES = "bundles"


def bundle_blob_key(bundle_id: str) -> str:
    """Return where a bundle's bytes are stored."""
    return f"{BUNDLES}/{bundle_id}"


@dataclass(frozen=True)
class BundleMaker:
    """Makes bundles on this machine.

    Attributes:
        probe: Reads this machine.
        num_training: Jobs that train now: they and an export would take each other's memory.
        run: Runs one export in a process of its own.
    """

    settings: Settings
    catalog: Catalog
    tuned_models: TunedModelRepository
    blobs: Blobs
    probe: Callable[[], Machine]
    num_training: Callable[[], int]
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
            check_export(card, machine.memory_available_bytes, machine.disk_free_bytes)
        except DoesNotFit as error:
            return error.message
        return None

    def make(self, export: Export, work: Work) -> MadeBundle:
        """Make it; blocks, and ends soon after ``work`` was stopped.

        Raises:
            MaasError: It failed.
        """
        card = self.catalog.get_card(export.base_model_id)
        tuned = self._tuned(export)
        folder = self.settings.home / "scratch" / f"{export.id}-{export.attempt}"
        try:
            work.report({"phase": "weights", "percent": 0, "message": "preparing the weights"})
            spec = self._spec(export, card, tuned, folder)
            if work.is_stopped:
                raise EngineError("the export was stopped")
            result = self.run(
                spec,
                lambda progress: work.report(progress.model_dump()),
                on_start=lambda child: work.end_with(child.kill),
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

    def _tuned(self, export: Export) -> TunedModel | None:
        if export.model_id == export.base_model_id:
            return None
        model = self.tuned_models.find(export.model_id)
        if model is None or model.deleted_at is not None or model.adapter_id is None:
            raise CapabilityMissing(f"the adapter {export.model_id!r} was deleted", param="model")
        check_allows_export(model)
        return model

    def _spec(
        self, export: Export, card: ModelCard, tuned: TunedModel | None, folder: Path
    ) -> ExportSpec:
        settings = self.settings
        prepared = prepare_model(
            card,
            weights_dir=settings.weights_dir,
            progress=lambda _: None,
            allow_remote_code=settings.allow_remote_code,
            allow_pickle=settings.allow_pickle,
            access=source_access(settings),
        )
        # The export's name makes the bundle's id its own: no two projects share one.
        lineage: dict[str, Any] = {
            "export": export.id,
            "source": prepared.manifest.source,
            "commit": prepared.manifest.commit,
        }
        licence: Mapping[str, Any] = card.licence.model_dump(mode="json")
        adapter_dir = None
        if tuned is not None and tuned.adapter_id is not None:
            lineage |= {"tuned": dict(tuned.lineage), "job": tuned.job_id}
            lineage |= {"adapter_sha256": tuned.adapter_id}
            licence = tuned.licence
            adapter_dir = folder / "adapter"
            folder.mkdir(parents=True, exist_ok=True)
            self.blobs.get_folder(blob_key_of(tuned.adapter_id), adapter_dir, ADAPTER_NAMES)
        return ExportSpec(
            model_id=export.model_id,
            base_model_id=card.id,
            model_dir=prepared.model_dir,
            adapter_dir=adapter_dir,
            target=_TARGETS[export.target],
            precision=_PRECISIONS[export.precision],
            name=export.name,
            work_dir=folder / "work",
            out_path=folder / "bundle.maas",
            signing_key=settings.home / "bundle.key",
            task=card.task,
            max_model_len=card.context,
            tool_call_parser=card.tool_call_parser,
            licence=dict(licence),
            lineage=lineage,
            quality=QualityDemand.model_validate(dict(export.quality)),
            created_at=float(int(export.created_at)),
        )
