"""Bring an adapter; see those of the project's tuned models."""

from itertools import chain
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import StreamingResponse

from maas.core.errors import ModelNotFound, NotFound
from maas.finetune.adapter_files import ADAPTER_NAMES
from maas.finetune.registry import blob_key_of, check_allows_export
from maas.gateway.adapters.door import taken_of
from maas.gateway.adapters.schemas import AdapterBody, AdapterObject, shown
from maas.gateway.adapters.service import BroughtAdapters
from maas.gateway.authority import ProjectAuthority, in_own_project
from maas.gateway.organization.pages import ListPage, page_of
from maas.store.adapters import TunedModel
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/adapters", tags=["fine-tuning"])

_Who = Annotated[ProjectAuthority, Depends(in_own_project(Permission.JOBS))]


def _service(request: Request) -> BroughtAdapters:
    return request.app.state.brought_adapters


_Service = Annotated[BroughtAdapters, Depends(_service)]


@router.post("")
def create_adapter(
    body: AdapterBody, request: Request, who: _Who, service: _Service
) -> AdapterObject:
    """Make a tuned model of an adapter whose two files were uploaded with purpose ``adapter``."""
    adapter = taken_of(request.scope)
    return shown(service.create(who, body, adapter), adapter)


@router.get("")
def list_adapters(who: _Who, service: _Service) -> ListPage[AdapterObject]:
    """List the project's tuned models that are adapters, oldest first."""
    registry = service.registry
    found = [
        shown(model, registry.adapters.get(model.adapter_id))
        for model in registry.tuned_models.list(who.project.id)
        if model.adapter_id is not None
    ]
    return page_of(found, has_more=False)


@router.get("/{model:path}/files/{name}", response_class=StreamingResponse)
def get_adapter_file(model: str, name: str, who: _Who, service: _Service) -> StreamingResponse:
    """Return one of an adapter's two files, as PEFT writes them, if its licence allows it."""
    found, adapter_id = _of_project(service, who, model)
    check_allows_export(found)
    if name not in ADAPTER_NAMES:
        raise NotFound(f"an adapter has the files {', '.join(ADAPTER_NAMES)}", param="name")
    chunks = service.registry.blobs.read(f"{blob_key_of(adapter_id)}/{name}")
    # Read before anything is answered: what cannot be read at all is an error with a status.
    first = next(chunks, b"")
    return StreamingResponse(
        chain((first,), chunks),
        media_type="application/octet-stream",
        headers={"content-disposition": "attachment", "x-content-type-options": "nosniff"},
    )


@router.get("/{model:path}")
def get_adapter(model: str, who: _Who, service: _Service) -> AdapterObject:
    """Return one of the project's tuned models: how it fares, where it came from."""
    found, adapter_id = _of_project(service, who, model)
    return shown(found, service.registry.adapters.get(adapter_id))


def _of_project(
    service: BroughtAdapters, who: ProjectAuthority, name: str
) -> tuple[TunedModel, str]:
    """Return a project's tuned model and the id of its adapter."""
    found = service.registry.tuned_models.find(name)
    is_ours = found is not None and found.project_id == who.project.id
    if found is None or not is_ours or found.deleted_at is not None or found.adapter_id is None:
        raise ModelNotFound(f"the project has no tuned model {name[:100]!r}", param="model")
    return found, found.adapter_id
