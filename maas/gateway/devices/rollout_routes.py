"""Rollouts: start, watch, pause, resume, cancel."""

from fastapi import APIRouter

from maas.gateway.devices.dependencies import NewestDep, ReaderDep, ServiceDep, WhoDep
from maas.gateway.devices.schemas import RolloutBody, RolloutObject, shown_rollout
from maas.gateway.organization.pages import ListPage, page_of

router = APIRouter(prefix="/rollouts")


@router.post("")
def start_rollout(body: RolloutBody, who: WhoDep, service: ServiceDep) -> RolloutObject:
    """Begin to give a channel's devices a bundle, stage by stage."""
    return shown_rollout(service.start_rollout(who, body))


@router.get("")
def list_rollouts(
    who: ReaderDep, service: ServiceDep, window: NewestDep
) -> ListPage[RolloutObject]:
    """List the project's rollouts, newest first."""
    page = service.fleet.rollouts.list(who.project.id, window)
    return page_of([shown_rollout(item) for item in page.items], has_more=page.has_more)


@router.get("/{rollout_id}")
def get_rollout(rollout_id: str, who: ReaderDep, service: ServiceDep) -> RolloutObject:
    """Return one rollout."""
    return shown_rollout(service.fleet.rollouts.get(who.project.id, rollout_id))


@router.post("/{rollout_id}/pause")
def pause_rollout(rollout_id: str, who: WhoDep, service: ServiceDep) -> RolloutObject:
    """Let no further device take the bundle."""
    return shown_rollout(service.fleet.rollouts.pause(who.project.id, rollout_id))


@router.post("/{rollout_id}/resume")
def resume_rollout(rollout_id: str, who: WhoDep, service: ServiceDep) -> RolloutObject:
    """Go on with one that is paused or halted; devices that failed try again."""
    return shown_rollout(service.fleet.rollouts.resume(who.project.id, rollout_id))


@router.post("/{rollout_id}/cancel")
def cancel_rollout(rollout_id: str, who: WhoDep, service: ServiceDep) -> RolloutObject:
    """End one: every device wants its channel's bundle again."""
    return shown_rollout(service.fleet.rollouts.cancel(who.project.id, rollout_id))
