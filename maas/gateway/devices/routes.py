"""All routes of ``/v1/devices`` but the two that devices use themselves (``door``)."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends

from maas.gateway.devices import group_routes, rollout_routes
from maas.gateway.devices.dependencies import NewestDep, ReaderDep, ServiceDep, WhoDep
from maas.gateway.devices.schemas import (
    CodeBody,
    CodeObject,
    DeviceChangeBody,
    DeviceEventObject,
    DeviceObject,
    SpeedObject,
    SummaryObject,
    shown_code,
    shown_device,
    shown_event,
)
from maas.gateway.organization.pages import ListPage, page_of
from maas.gateway.organization.wire import Deleted
from maas.store.devices import DeviceFilter

router = APIRouter(prefix="/v1/devices", tags=["devices"])
# Before the devices: an id could be any of these words.
router.include_router(group_routes.router)
router.include_router(rollout_routes.router)


def _filter(
    group: str | None = None,
    channel: str | None = None,
    bundle_id: str | None = None,
    status: Literal["enrolled", "retired"] | None = None,
) -> DeviceFilter:
    is_retired = None if status is None else status == "retired"
    return DeviceFilter(group=group, channel=channel, bundle_id=bundle_id, is_retired=is_retired)


@router.post("/enrolment_codes")
def create_enrolment_code(body: CodeBody, who: WhoDep, service: ServiceDep) -> CodeObject:
    """Make a code that enrols one device. It is shown in this answer and never again."""
    return shown_code(*service.create_code(who, body))


@router.get("/enrolment_codes")
def list_enrolment_codes(
    who: ReaderDep, service: ServiceDep, window: NewestDep
) -> ListPage[CodeObject]:
    """List the project's codes, newest first; never the codes themselves."""
    page = service.fleet.enrolment.list(who.project.id, window)
    return page_of([shown_code(item) for item in page.items], has_more=page.has_more)


@router.delete("/enrolment_codes/{code_id}")
def delete_enrolment_code(code_id: str, who: WhoDep, service: ServiceDep) -> Deleted:
    """Take a code away; a device that it made stays."""
    service.fleet.enrolment.delete(who.project.id, code_id)
    return Deleted(object="device.enrolment_code", id=code_id)


@router.get("/summary")
def get_summary(who: ReaderDep, service: ServiceDep) -> SummaryObject:
    """Count devices by status, bundle and group, with the medians of their speeds."""
    found = service.fleet.devices.summary(who.project.id)
    return SummaryObject(
        by_status={"enrolled": found.num_enrolled, "retired": found.num_retired},
        online=found.num_online,
        by_bundle={bundle or "none": count for bundle, count in found.num_by_bundle.items()},
        by_group=found.num_by_group,
        speed={
            name: SpeedObject(median=value, num_devices=count)
            for name, (value, count) in found.medians.items()
        },
    )


@router.get("")
def list_devices(
    who: ReaderDep,
    service: ServiceDep,
    window: NewestDep,
    wanted: Annotated[DeviceFilter, Depends(_filter)],
) -> ListPage[DeviceObject]:
    """List the project's devices, newest first; ``bundle_id`` is what they say they run."""
    page = service.fleet.devices.list(who.project.id, wanted, window)
    return page_of([shown_device(item) for item in page.items], has_more=page.has_more)


@router.get("/{device_id}")
def get_device(device_id: str, who: ReaderDep, service: ServiceDep) -> DeviceObject:
    """Return one device."""
    return shown_device(service.fleet.devices.get(who.project.id, device_id))


@router.get("/{device_id}/events")
def list_device_events(
    device_id: str, who: ReaderDep, service: ServiceDep, window: NewestDep
) -> ListPage[DeviceEventObject]:
    """List what happened to a device, newest first."""
    page = service.fleet.devices.events(who.project.id, device_id, window)
    return page_of([shown_event(item) for item in page.items], has_more=page.has_more)


@router.post("/{device_id}")
def modify_device(
    device_id: str, body: DeviceChangeBody, who: WhoDep, service: ServiceDep
) -> DeviceObject:
    """Change a device's name, group, channel or pin."""
    return shown_device(service.modify_device(who, device_id, body))


@router.delete("/{device_id}")
def retire_device(device_id: str, who: WhoDep, service: ServiceDep) -> Deleted:
    """Retire a device: its key is revoked at once. What it told stays to be read."""
    service.fleet.devices.retire(who.project.id, device_id)
    return Deleted(object="device", id=device_id)
