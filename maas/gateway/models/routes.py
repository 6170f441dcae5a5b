"""List and retrieve models."""

from fastapi import APIRouter

from maas.gateway.access import CallerDep, SnapshotDep
from maas.gateway.relay.snapshot import ModelEntry
from maas.protocol.models import Model, ModelList

router = APIRouter(prefix="/v1/models", tags=["models"])


def _model(entry: ModelEntry) -> Model:
    return Model(
        id=entry.name, created=entry.created, owned_by=entry.facts.owned_by, root=entry.root
    )


@router.get("")
async def list_models(_: CallerDep, snapshot: SnapshotDep) -> ModelList:
    """List the models that can be asked, aliases too."""
    return ModelList(data=[_model(entry) for entry in snapshot.models.values()])


@router.get("/{model:path}")
async def get_model(model: str, _: CallerDep, snapshot: SnapshotDep) -> Model:
    """Return one model."""
    return _model(snapshot.resolve(model))
