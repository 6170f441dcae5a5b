"""Groups and channels of devices; both are known by name in their project."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import Conflict, NotFound
from maas.core.ids import new_id
from maas.store.bundles import bundle_row
from maas.store.database import Database, move_revision
from maas.store.device_keys import fit_keys
from maas.store.fleet_records import (
    DEFAULT_CHANNEL,
    DEFAULT_GROUP,
    DEFAULT_HEARTBEAT_S,
    Channel,
    Group,
    channel_of,
    group_of,
)
from maas.store.fleet_tables import (
    DeviceChannelRow,
    DeviceGroupRow,
    DeviceRolloutRow,
    DeviceRow,
    EnrolmentCodeRow,
)
from maas.store.pages import Page, Window, read_page
from maas.store.rollout_rules import OVER
from maas.store.text import as_name

_OVER = [status.value for status in OVER]


@dataclass(frozen=True)
class NewGroup:
    """A group that is asked for."""

    name: str
    channel: str = DEFAULT_CHANNEL
    bundle_id: str | None = None
    fallback_model: str | None = None
    heartbeat_s: int = DEFAULT_HEARTBEAT_S


class GroupRepository:
    """Reads and writes groups."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(self, project_id: str, new: NewGroup, labels: Mapping[str, str]) -> Group:
        """Make a group, and its channel where there is none.

        Raises:
            Conflict: There is one of this name.
            NotFound: The project has no such bundle.
        """
        with self._database.write(bump_revision=False) as session:
            if _find_group(session, project_id, new.name) is not None:
                raise Conflict(f"there is a group {new.name!r} already")
            row = _add_group(session, project_id, new, labels, self._clock.now())
            return group_of(row)

    def get(self, project_id: str, name: str) -> Group:
        """Return a group.

        Raises:
            NotFound: The project has none of this name.
        """
        with self._database.read() as session:
            return group_of(group_row(session, project_id, name))

    def list(self, project_id: str, window: Window) -> Page[Group]:
        """Return a page of a project's groups; the cursor is a name."""
        wanted = select(DeviceGroupRow).where(DeviceGroupRow.project_id == project_id)
        with self._database.read() as session:
            order = (DeviceGroupRow.created_at, DeviceGroupRow.name)
            page = read_page(session, wanted, order=order, window=window)
            return Page(tuple(group_of(row) for row in page.items), page.has_more)

    def modify(self, project_id: str, name: str, changes: Mapping[str, Any]) -> Group:
        """Change a group; another fallback model changes its devices' keys with it.

        Args:
            project_id: Whose.
            name: Which.
            changes: New values by attribute.

        Raises:
            NotFound: There is no such group, or no such bundle.
        """
        with self._database.write(bump_revision=False) as session:
            row = group_row(session, project_id, name)
            if changes.get("bundle_id") is not None:
                bundle_row(session, project_id, changes["bundle_id"])
            if "channel" in changes:
                find_or_add_channel(session, project_id, changes["channel"], self._clock.now())
            was = row.fallback_model
            for attribute, value in changes.items():
                setattr(row, attribute, value)
            if row.fallback_model != was:
                in_group = _living_in(project_id, name)
                fit_keys(session, session.scalars(in_group).all(), row.fallback_model)
                move_revision(session)
            return group_of(row)

    def delete(self, project_id: str, name: str) -> None:
        """Remove a group that nothing is in.

        Raises:
            NotFound: There is no such group.
            Conflict: A device is in it, or a code that still works leads into it.
        """
        with self._database.write(bump_revision=False) as session:
            row = group_row(session, project_id, name)
            if session.scalars(_living_in(project_id, name).limit(1)).first() is not None:
                raise Conflict(f"devices are in the group {name!r}: move or retire them first")
            open_codes = select(EnrolmentCodeRow.id).where(
                EnrolmentCodeRow.project_id == project_id,
                EnrolmentCodeRow.group_name == name,
                EnrolmentCodeRow.used_at.is_(None),
                EnrolmentCodeRow.expires_at > self._clock.now(),
            )
            if session.scalars(open_codes.limit(1)).first() is not None:
                raise Conflict(f"enrolment codes lead into the group {name!r}: delete them first")
            session.delete(row)


class ChannelRepository:
    """Reads and writes channels."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def get(self, project_id: str, name: str) -> Channel:
        """Return a channel.

        Raises:
            NotFound: The project has none of this name.
        """
        with self._database.read() as session:
            return channel_of(_channel_row(session, project_id, name))

    def list(self, project_id: str, window: Window) -> Page[Channel]:
        """Return a page of a project's channels; the cursor is a name."""
        wanted = select(DeviceChannelRow).where(DeviceChannelRow.project_id == project_id)
        with self._database.read() as session:
            order = (DeviceChannelRow.created_at, DeviceChannelRow.name)
            page = read_page(session, wanted, order=order, window=window)
            return Page(tuple(channel_of(row) for row in page.items), page.has_more)

    def set(self, project_id: str, name: str, bundle_id: str | None) -> Channel:
        """Give all devices of a channel a bundle at once; the channel is made where there is none.

        Raises:
            NotFound: The project has no such bundle.
            Conflict: A rollout of the channel is not over.
        """
        with self._database.write(bump_revision=False) as session:
            if bundle_id is not None:
                bundle_row(session, project_id, bundle_id)
            _check_no_rollout(session, project_id, name)
            row = find_or_add_channel(session, project_id, name, self._clock.now())
            row.bundle_id, row.updated_at = bundle_id, self._clock.now()
            return channel_of(row)

    def delete(self, project_id: str, name: str) -> None:
        """Remove a channel that nothing follows.

        Raises:
            NotFound: There is no such channel.
            Conflict: A group or a device follows it, or a rollout of it is not over.
        """
        with self._database.write(bump_revision=False) as session:
            row = _channel_row(session, project_id, name)
            _check_no_rollout(session, project_id, name)
            groups = select(DeviceGroupRow.name).where(
                DeviceGroupRow.project_id == project_id, DeviceGroupRow.channel == name
            )
            devices = select(DeviceRow.id).where(
                DeviceRow.project_id == project_id,
                DeviceRow.channel == name,
                DeviceRow.retired_at.is_(None),
            )
            for kind, followers in (("group", groups), ("device", devices)):
                follower = session.scalars(followers.limit(1)).first()
                if follower is not None:
                    raise Conflict(f"the {kind} {follower} follows the channel {name!r}")
            session.delete(row)


def group_row(session: Session, project_id: str, name: str) -> DeviceGroupRow:
    """Return a group's row.

    Raises:
        NotFound: The project has none of this name.
    """
    row = _find_group(session, project_id, name)
    if row is None:
        raise NotFound(f"no group is called {name!r}")
    return row


def needed_group(session: Session, project_id: str, name: str, now: float) -> DeviceGroupRow:
    """Return a group's row; the group ``default`` is made when it is first needed.

    Raises:
        NotFound: The project has none of this name.
    """
    if name == DEFAULT_GROUP and _find_group(session, project_id, name) is None:
        return _add_group(session, project_id, NewGroup(name), {}, now)
    return group_row(session, project_id, name)


def find_or_add_channel(
    session: Session, project_id: str, name: str, now: float
) -> DeviceChannelRow:
    """Return a channel's row, made where there is none."""
    row = _find_channel(session, project_id, name)
    if row is None:
        row = DeviceChannelRow(
            id=new_id("channel"),
            project_id=project_id,
            name=as_name(name),
            bundle_id=None,
            created_at=now,
            updated_at=now,
        )
        session.add(row)
        session.flush()
    return row


def unfinished_rollout(session: Session, project_id: str, channel: str) -> DeviceRolloutRow | None:
    """Return the rollout of a channel that is not over."""
    return session.scalars(
        select(DeviceRolloutRow).where(
            DeviceRolloutRow.project_id == project_id,
            DeviceRolloutRow.channel == channel,
            DeviceRolloutRow.status.not_in(_OVER),
        )
    ).one_or_none()


def _add_group(
    session: Session, project_id: str, new: NewGroup, labels: Mapping[str, str], now: float
) -> DeviceGroupRow:
    if new.bundle_id is not None:
        bundle_row(session, project_id, new.bundle_id)
    find_or_add_channel(session, project_id, new.channel, now)
    row = DeviceGroupRow(
        id=new_id("dgroup"),
        project_id=project_id,
        name=as_name(new.name),
        channel=new.channel,
        bundle_id=new.bundle_id,
        fallback_model=new.fallback_model,
        heartbeat_s=new.heartbeat_s,
        labels=dict(labels),
        created_at=now,
    )
    session.add(row)
    session.flush()
    return row


def _find_group(session: Session, project_id: str, name: str) -> DeviceGroupRow | None:
    return session.scalars(
        select(DeviceGroupRow).where(
            DeviceGroupRow.project_id == project_id, DeviceGroupRow.name == name
        )
    ).one_or_none()


def _channel_row(session: Session, project_id: str, name: str) -> DeviceChannelRow:
    row = _find_channel(session, project_id, name)
    if row is None:
        raise NotFound(f"no channel is called {name!r}")
    return row


def _check_no_rollout(session: Session, project_id: str, channel: str) -> None:
    unfinished = unfinished_rollout(session, project_id, channel)
    if unfinished is not None:
        raise Conflict(
            f"rollout {unfinished.id} of the channel {channel!r} is {unfinished.status}: "
            "cancel it first"
        )


def _find_channel(session: Session, project_id: str, name: str) -> DeviceChannelRow | None:
    return session.scalars(
        select(DeviceChannelRow).where(
            DeviceChannelRow.project_id == project_id, DeviceChannelRow.name == name
        )
    ).one_or_none()


def _living_in(project_id: str, name: str) -> Select[str]:
    return select(DeviceRow.id).where(
        DeviceRow.project_id == project_id,
        DeviceRow.group_name == name,
        DeviceRow.retired_at.is_(None),
    )
