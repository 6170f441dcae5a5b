"""List and retrieve models; delete tuned ones."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from maas.core.errors import InvalidRequest, NotFound, PermissionDenied
from maas.gateway.access import CallerDep, SnapshotDep
from maas.gateway.authority import IdentifiedDep
from maas.gateway.relay.snapshot import ModelEntry, Snapshot
from maas.protocol.models import DeletedModel, Model, ModelList
from maas.store.adapters import TunedModelRepository
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/models", tags=["models"])


def _tuned_models(request: Request) -> TunedModelRepository:
    return request.app.state.tuned_models


TunedModelsDep = Annotated[TunedModelRepository, Depends(_tuned_models)]


def _model(entry: ModelEntry, snapshot: Snapshot) -> Model:
    if entry.base is None:
        owned_by, root = entry.facts.owned_by, entry.root
    else:
        owner = snapshot.projects.get(entry.owner or "")
        organization = snapshot.organizations.get(owner.organization_id) if owner else None
        # An alias of a tuned model stands for it; the tuned model itself grew from its base.
        root = entry.base if entry.name == entry.root else entry.root
        owned_by = organization.name if organization else entry.facts.owned_by
    return Model(
        id=entry.name, created=entry.created, owned_by=owned_by, root=root, parent=entry.base
    )


@router.get("")
async def list_models(caller: CallerDep, snapshot: SnapshotDep) -> ModelList:
    """List the models that this key can ask: aliases and its project's tuned models too."""
    entries = snapshot.seen_by(caller.key.project_id)
    return ModelList(
        data=[
            _model(entry, snapshot) for entry in entries if caller.may_see(entry.name, entry.root)
        ]
    )


@router.get("/{model:path}")
async def get_model(model: str, caller: CallerDep, snapshot: SnapshotDep) -> Model:
    """Return one model."""
    entry = snapshot.resolve(model, caller.key.project_id)
    caller.check_model(entry.name, entry.root)
    return _model(entry, snapshot)


@router.delete("/{model:path}")
def delete_model(
    model: str, caller: IdentifiedDep, snapshot: SnapshotDep, tuned_models: TunedModelsDep
) -> DeletedModel:
    """Delete a tuned model of the key's project; its name is never given to another one."""
    project_id = caller.key.project_id
    known = tuned_models.find(model)
    if known is None or known.project_id != project_id or known.deleted_at is not None:
        # What can be seen but not deleted says so; all else does not exist.
        entry = snapshot.resolve(model, project_id)
        if entry.name != entry.root:
            raise InvalidRequest(
                f"{model!r} is an alias of {entry.root!r}; only a tuned model can be deleted",
                param="model",
            )
        raise PermissionDenied(f"the model {model!r} is not a tuned one; it stays")
    caller.check_model(model, model)
    if Permission.JOBS not in caller.project_permissions | caller.everywhere:
        raise PermissionDenied(f"this API key lacks the permission {Permission.JOBS.value!r}")
    try:
        tuned_models.delete(project_id, model)
    except NotFound as error:
        raise NotFound(f"the model {model!r} was deleted a moment ago") from error
    return DeletedModel(id=model)
