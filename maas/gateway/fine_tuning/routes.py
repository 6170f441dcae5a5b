"""Make, watch, pause and cancel fine-tuning jobs."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from maas.core.errors import InvalidRequest
from maas.finetune.recipe import Recipe
from maas.gateway.authority import ProjectAuthority, in_own_project
from maas.gateway.fine_tuning.schemas import (
    CheckpointObject,
    EventObject,
    JobBody,
    JobObject,
    shown,
    shown_checkpoint,
    shown_event,
)
from maas.gateway.fine_tuning.service import FineTuning, check_metadata
from maas.gateway.organization.pages import ListPage, page_of
from maas.gateway.relay.http import request_id_of
from maas.store.pages import MAX_PAGE, Window
from maas.store.roles import Permission

router = APIRouter(prefix="/v1/fine_tuning", tags=["fine-tuning"])

_METADATA_PREFIX, _METADATA_SUFFIX = "metadata[", "]"
_Who = Annotated[ProjectAuthority, Depends(in_own_project(Permission.JOBS))]
_Reader = Annotated[
    ProjectAuthority, Depends(in_own_project(Permission.JOBS, or_else=Permission.READ))
]


def _service(request: Request) -> FineTuning:
    return request.app.state.fine_tuning


def _newest_first(
    after: str | None = None, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20
) -> Window:
    return Window(after=after, limit=limit, is_newest_first=True)


_Service = Annotated[FineTuning, Depends(_service)]
_WindowDep = Annotated[Window, Depends(_newest_first)]


@router.post("/jobs")
def create_job(body: JobBody, request: Request, who: _Who, service: _Service) -> JobObject:
    """Make a job."""
    job = service.create(who, body, request_id_of(request.scope))
    return shown(job, who.organization_id)


@router.get("/jobs")
def list_jobs(
    request: Request, who: _Reader, service: _Service, window: _WindowDep
) -> ListPage[JobObject]:
    """List the project's jobs, newest first; ``metadata[k]=v`` keeps those that have it.

    ``metadata=null`` keeps those without any.
    """
    page = service.jobs.list(who.project.id, window, _metadata_of(request))
    return page_of([shown(job, who.organization_id) for job in page.items], has_more=page.has_more)


@router.get("/jobs/{job_id}")
def get_job(job_id: str, who: _Reader, service: _Service) -> JobObject:
    """Return one job, with the parity receipt of what it made."""
    job = service.jobs.get(who.project.id, job_id)
    return shown(job, who.organization_id, service.tuned_models.receipt_of(job))


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: str, who: _Who, service: _Service) -> JobObject:
    """End a job; what was trained is charged."""
    return shown(service.cancel(who.project.id, job_id), who.organization_id)


@router.post("/jobs/{job_id}/pause")
def pause_job(job_id: str, who: _Who, service: _Service) -> JobObject:
    """Pause a job after its next checkpoint, which is written at once."""
    return shown(service.jobs.pause(who.project.id, job_id), who.organization_id)


@router.post("/jobs/{job_id}/resume")
def resume_job(job_id: str, who: _Who, service: _Service) -> JobObject:
    """Go on with a job that is paused."""
    return shown(service.jobs.resume(who.project.id, job_id), who.organization_id)


@router.get("/jobs/{job_id}/events")
def list_events(
    job_id: str, who: _Reader, service: _Service, window: _WindowDep
) -> ListPage[EventObject]:
    """List what a job told, newest first."""
    page = service.jobs.events(who.project.id, job_id, window)
    return page_of([shown_event(event) for event in page.items], has_more=page.has_more)


@router.get("/jobs/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str, who: _Reader, service: _Service, window: _WindowDep
) -> ListPage[CheckpointObject]:
    """List a job's checkpoints, newest first."""
    page = service.jobs.checkpoints(who.project.id, job_id, window)
    return page_of([shown_checkpoint(item) for item in page.items], has_more=page.has_more)


@router.get("/recipes")
def list_recipes(who: _Reader, service: _Service) -> list[Recipe]:  # noqa: ARG001 - checks the key
    """List the recipes; ours, not OpenAI's."""
    return list(service.recipes.values())


def _metadata_of(request: Request) -> dict[str, str] | None:
    """Return what the metadata of a job must hold; nothing where that does not matter."""
    wanted: dict[str, str] | None = None
    for name, value in request.query_params.multi_items():
        if name == "metadata":
            if value != "null":
                raise InvalidRequest("metadata: want metadata[key]=value or null", param="metadata")
            wanted = wanted or {}
        elif name.startswith(_METADATA_PREFIX) and name.endswith(_METADATA_SUFFIX):
            key = name[len(_METADATA_PREFIX) : -1]
            check_metadata({key: value})
            wanted = {**(wanted or {}), key: value}
    return wanted
