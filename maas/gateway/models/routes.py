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
async def list_models(caller: CallerDep, snapshot: SnapshotDep) -> ModelList:
    """List the models that this key can ask, aliases too."""
    entries = snapshot.models.values()
    return ModelList(
        data=[_model(entry) for entry in entries if caller.may_see(entry.name, entry.root)]
    )


@router.get("/{model:path}")
async def get_model(model: str, caller: CallerDep, snapshot: SnapshotDep) -> Model:
    """Return one model."""
    entry = snapshot.resolve(model)
    caller.check_model(entry.name, entry.root)
    return _model(entry)
