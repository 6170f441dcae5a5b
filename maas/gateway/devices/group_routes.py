"""Groups and channels."""

from typing import Any

from fastapi import APIRouter

from maas.gateway.devices.dependencies import OldestDep, ReaderDep, ServiceDep, WhoDep
from maas.gateway.devices.schemas import (
    ChannelBody,
    ChannelObject,
    GroupBody,
    GroupChangeBody,
    GroupObject,
    Slug,
    named_page,
    shown_channel,
    shown_group,
)
from maas.gateway.organization.pages import ListPage
from maas.gateway.organization.wire import Deleted
from maas.store.pages import Page

router = APIRouter()


@router.post("/groups")
def create_group(body: GroupBody, who: WhoDep, service: ServiceDep) -> GroupObject:
    """Make a group."""
    return shown_group(service.create_group(who, body))


@router.get("/groups")
def list_groups(who: ReaderDep, service: ServiceDep, window: OldestDep) -> ListPage[GroupObject]:
    """List the project's groups."""
    page = service.fleet.groups.list(who.project.id, window)
    return named_page(Page(tuple(shown_group(item) for item in page.items), page.has_more))


@router.get("/groups/{group_name}")
def get_group(group_name: str, who: ReaderDep, service: ServiceDep) -> GroupObject:
    """Return one group."""
    return shown_group(service.fleet.groups.get(who.project.id, group_name))


@router.post("/groups/{group_name}")
def modify_group(
    group_name: str, body: GroupChangeBody, who: WhoDep, service: ServiceDep
) -> GroupObject:
    """Change a group; another fallback model changes its devices' keys at once."""
    return shown_group(service.modify_group(who, group_name, body))


@router.delete("/groups/{group_name}")
def delete_group(group_name: str, who: WhoDep, service: ServiceDep) -> Deleted:
    """Remove a group that no device is in."""
    service.fleet.groups.delete(who.project.id, group_name)
    return Deleted(object="device.group", id=group_name)


@router.get("/channels")
def list_channels(who: ReaderDep, service: ServiceDep, window: OldestDep) -> ListPage[Any]:
    """List the project's channels."""
    page = service.fleet.channels.list(who.project.id, window)
    return named_page(Page(tuple(shown_channel(item) for item in page.items), page.has_more))


@router.get("/channels/{channel_name}")
def get_channel(channel_name: str, who: ReaderDep, service: ServiceDep) -> ChannelObject:
    """Return one channel."""
    return shown_channel(service.fleet.channels.get(who.project.id, channel_name))


@router.post("/channels/{channel_name}")
def set_channel(
    channel_name: Slug, body: ChannelBody, who: WhoDep, service: ServiceDep
) -> ChannelObject:
    """Give all devices of a channel a bundle at once, without stages."""
    return shown_channel(service.fleet.channels.set(who.project.id, channel_name, body.bundle_id))


@router.delete("/channels/{channel_name}")
def delete_channel(channel_name: str, who: WhoDep, service: ServiceDep) -> Deleted:
    """Remove a channel that no group, device or rollout follows."""
    service.fleet.channels.delete(who.project.id, channel_name)
    return Deleted(object="device.channel", id=channel_name)
