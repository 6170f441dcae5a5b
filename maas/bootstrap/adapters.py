"""Adapters that were not tuned here, brought by the operator."""

from pathlib import Path

from maas.bootstrap.store import Store
from maas.catalog.catalog import load_catalog
from maas.core.errors import NotFound
from maas.core.settings import Settings
from maas.finetune.adapter_files import ADAPTER_NAMES
from maas.finetune.base_modules import read_base_modules
from maas.finetune.registry import (
    AdapterRegistry,
    Brought,
    blob_key_of,
    check_allows_export,
    max_rank_of,
)
from maas.store.adapters import Adapter, TunedModel
from maas.store.blobs import open_blobs
from maas.store.records import Project


def open_registry(settings: Settings, store: Store) -> AdapterRegistry:
    """Return what stores adapters."""
    return AdapterRegistry(
        blobs=open_blobs(settings),
        adapters=store.adapters,
        tuned_models=store.tuned_models,
        scratch_dir=settings.home / "scratch",
    )


def export_adapter(settings: Settings, store: Store, name: str, folder: Path) -> TunedModel:
    """Write a tuned model's adapter into a folder, as PEFT does.

    Raises:
        NotFound: No tuned model has this name, or it is no adapter.
        PermissionDenied: The licence of its base forbids it.
    """
    model = store.tuned_models.find(name)
    if model is None or model.deleted_at is not None or model.adapter_id is None:
        raise NotFound(f"no adapter has the name {name!r}")
    check_allows_export(model)
    open_blobs(settings).get_folder(blob_key_of(model.adapter_id), folder, ADAPTER_NAMES)
    return model


def bring_adapter(
    settings: Settings,
    store: Store,
    folder: Path,
    *,
    base_model_id: str,
    project: Project,
    suffix: str | None,
) -> tuple[TunedModel, Adapter]:
    """Take an adapter from a folder of this machine.

    Raises:
        AdapterRefused: It cannot be served.
        ModelNotFound: No card has the base's id.
    """
    card = load_catalog(settings.models_dir).get_card(base_model_id)
    weights = settings.weights_dir / card.id
    brought = Brought(
        folder=folder,
        project_id=project.id,
        organization=store.tenancy.organizations.find(project.organization_id).name,
        suffix=suffix,
        source={"source": "folder"},
        max_rank=max_rank_of(store.deployments.list(), card.id),
    )
    base = read_base_modules(weights) if weights.is_dir() else None
    return open_registry(settings, store).bring(brought, card, base)
