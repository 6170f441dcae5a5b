"""Bring an adapter; see those of the project's tuned models."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from maas.core.errors import ModelNotFound
from maas.gateway.adapters.schemas import AdapterBody, AdapterObject, shown
from maas.gateway.adapters.service import BroughtAdapters
from maas.gateway.authority import ProjectAuthority, in_own_project
from maas.gateway.organization.pages import ListPage, page_of
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/adapters", tags=["fine-tuning"])

_Who = Annotated[ProjectAuthority, Depends(in_own_project(Permission.JOBS))]


def _service(request: Request) -> BroughtAdapters:
    return request.app.state.brought_adapters


_Service = Annotated[BroughtAdapters, Depends(_service)]


@router.post("")
def create_adapter(body: AdapterBody, who: _Who, service: _Service) -> AdapterObject:
    """Make a tuned model of an adapter whose two files were uploaded with purpose ``adapter``."""
    return shown(*service.create(who, body))


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


@router.get("/{model:path}")
def get_adapter(model: str, who: _Who, service: _Service) -> AdapterObject:
    """Return one of the project's tuned models: how it fares, where it came from."""
    found = service.registry.tuned_models.find(model)
    is_ours = found is not None and found.project_id == who.project.id
    if found is None or not is_ours or found.deleted_at is not None or found.adapter_id is None:
        raise ModelNotFound(f"the project has no tuned model {model[:100]!r}", param="model")
    return shown(found, service.registry.adapters.get(found.adapter_id))
