"""Devices: read, moved, bound to bundles, retired. What they tell is ``maas.store.heartbeats``."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import Conflict, NotFound
from maas.core.ids import new_id
from maas.store.bundles import bundle_row
from maas.store.database import Database, move_revision
from maas.store.device_events import News, tell
from maas.store.device_groups import find_or_add_channel, needed_group
from maas.store.device_keys import fit_keys
from maas.store.fleet_book import (
    IN_GROUP,
    DeviceFacts,
    FleetBook,
    follows,
    read_book,
    read_facts,
)
from maas.store.fleet_records import Device, DeviceEvent, event_of
from maas.store.fleet_tables import DeviceEventRow, DeviceGroupRow, DeviceRow, DeviceStateRow
from maas.store.pages import Page, Window, read_page
from maas.store.rollout_rules import Wish
from maas.store.tenancy_tables import ApiKeyRow


@dataclass(frozen=True)
class DeviceFilter:
    """Which devices are wanted; none of a thing wants all.

    Attributes:
        channel: That they follow, by themselves or by their group.
        bundle_id: That they say they run.
        is_retired: Whether those that are no more are wanted, or the others.
    """

    group: str | None = None
    channel: str | None = None
    bundle_id: str | None = None
    is_retired: bool | None = None


@dataclass(frozen=True)
class FleetSummary:
    """How many devices do what; retired ones count in ``num_retired`` alone.

    Attributes:
        num_by_bundle: By the bundle they say they run; none runs nothing.
        medians: Of what devices measured, and of how many.
    """

    num_enrolled: int
    num_retired: int
    num_online: int
    num_by_bundle: Mapping[str | None, int]
    num_by_group: Mapping[str, int]
    medians: Mapping[str, tuple[float | None, int]]


class DeviceRepository:
    """Reads and writes devices."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def get(self, project_id: str, device_id: str) -> Device:
        """Return a project's device.

        Raises:
            NotFound: It has none with this id.
        """
        with self._database.read() as session:
            return self._seen(session, [_device_row(session, project_id, device_id)])[0]

    def list(self, project_id: str, wanted: DeviceFilter, window: Window) -> Page[Device]:
        """Return a page of a project's devices."""
        rows = (
            select(DeviceRow)
            .outerjoin(DeviceGroupRow, IN_GROUP)
            .join(DeviceStateRow, DeviceStateRow.device_id == DeviceRow.id)
            .where(DeviceRow.project_id == project_id, *_conditions(wanted))
        )
        with self._database.read() as session:
            order = (DeviceRow.created_at, DeviceRow.id)
            page = read_page(session, rows, order=order, window=window)
            return Page(tuple(self._seen(session, page.items)), page.has_more)

    def events(self, project_id: str, device_id: str, window: Window) -> Page[DeviceEvent]:
        """Return a page of what happened to a device.

        Raises:
            NotFound: The project has no such device.
        """
        wanted = select(DeviceEventRow).where(DeviceEventRow.device_id == device_id)
        with self._database.read() as session:
            _device_row(session, project_id, device_id)
            order = (DeviceEventRow.created_at, DeviceEventRow.id)
            page = read_page(session, wanted, order=order, window=window)
            return Page(tuple(event_of(row) for row in page.items), page.has_more)

    def modify(self, project_id: str, device_id: str, changes: Mapping[str, Any]) -> Device:
        """Change a device; in another group its key has that group's terms at once.

        Args:
            project_id: Whose.
            device_id: Which.
            changes: New values by attribute.

        Raises:
            NotFound: There is no such device, group or bundle.
            Conflict: It is retired.
        """
        with self._database.write(bump_revision=False) as session:
            row = _device_row(session, project_id, device_id)
            if row.retired_at is not None:
                raise Conflict(f"device {device_id} is retired")
            if changes.get("bundle_id") is not None:
                bundle_row(session, project_id, changes["bundle_id"])
            if changes.get("channel") is not None:
                find_or_add_channel(session, project_id, changes["channel"], self._clock.now())
            if "group_name" in changes:
                self._move(session, row, changes["group_name"])
            is_moved = any(
                name in changes and getattr(row, name) != changes[name]
                for name in ("channel", "bundle_id")
            )
            for attribute, value in changes.items():
                setattr(row, attribute, value)
            session.flush()
            if is_moved:
                self._tell_place(session, row)
            return self._seen(session, [row])[0]

    def retire(self, project_id: str, device_id: str) -> None:
        """End a device: its key is revoked with it. Doing so twice is fine.

        Raises:
            NotFound: The project has no such device.
        """
        with self._database.write() as session:
            row = _device_row(session, project_id, device_id)
            if row.retired_at is None:
                now = self._clock.now()
                row.retired_at = now
                key = session.get_one(ApiKeyRow, row.key_id)
                key.revoked_at = key.revoked_at or now
                tell(
                    session, row.id, News("retired", "retired", "Retired; its key is revoked"), now
                )

    def may_read(self, key_id: str, bundle_id: str) -> bool:
        """Say whether a device should run a bundle, or runs it and was told to."""
        with self._database.read() as session:
            for facts in read_facts(session, DeviceRow.key_id == key_id):
                wish = _wish_of(read_book(session, [facts.project_id]), facts)
                if wish is not None and wish.bundle_id == bundle_id:
                    return True
                return facts.runs == bundle_id and bundle_id in facts.told
        return False

    def summary(self, project_id: str) -> FleetSummary:
        """Count a project's devices."""
        now = self._clock.now()
        with self._database.read() as session:
            of_project = DeviceRow.project_id == project_id
            facts = read_facts(session, of_project, DeviceRow.retired_at.is_(None))
            num_retired = session.scalars(
                select(func.count())
                .select_from(DeviceRow)
                .where(of_project, DeviceRow.retired_at.is_not(None))
            ).one()
            speeds = session.execute(
                select(
                    DeviceStateRow.load_s, DeviceStateRow.prefill_tok_s, DeviceStateRow.decode_tok_s
                )
                .join(DeviceRow, DeviceRow.id == DeviceStateRow.device_id)
                .where(of_project, DeviceRow.retired_at.is_(None))
            ).all()
        names = ("load_s", "prefill_tok_s", "decode_tok_s")
        return FleetSummary(
            num_enrolled=len(facts),
            num_retired=num_retired,
            num_online=sum(item.is_online(now) for item in facts),
            num_by_bundle=Counter(item.runs for item in facts),
            num_by_group=Counter(item.group for item in facts),
            medians={name: _median(row[at] for row in speeds) for at, name in enumerate(names)},
        )

    def _move(self, session: Session, row: DeviceRow, group_name: str) -> None:
        if group_name == row.group_name:
            return
        group = needed_group(session, row.project_id, group_name, self._clock.now())
        row.group_name = group.name
        fit_keys(session, [row.id], group.fallback_model)
        move_revision(session)
        self._tell_place(session, row)

    def _tell_place(self, session: Session, row: DeviceRow) -> None:
        data = {"group": row.group_name, "channel": row.channel, "bundle_id": row.bundle_id}
        words = ", ".join(f"{name} {value}" for name, value in data.items() if value is not None)
        news = News(new_id("assigned"), "assigned", f"Assigned: {words}", data=data)
        tell(session, row.id, news, self._clock.now())

    def _seen(self, session: Session, rows: Iterable[DeviceRow]) -> "list[Device]":
        """Return devices with what they told and what they should run."""
        known = list(rows)
        ids = [row.id for row in known]
        facts = {item.id: item for item in read_facts(session, DeviceRow.id.in_(ids))}
        reports = session.execute(
            select(DeviceStateRow.device_id, DeviceStateRow.report).where(
                DeviceStateRow.device_id.in_(ids)
            )
        )
        report_of = {row[0]: row[1] for row in reports}
        book = read_book(session, {row.project_id for row in known})
        return [
            Device(
                id=row.id,
                project_id=row.project_id,
                name=row.name,
                group=row.group_name,
                channel=row.channel,
                bundle_id=row.bundle_id,
                key_id=row.key_id,
                facts=row.facts,
                labels=row.labels,
                created_at=row.created_at,
                retired_at=row.retired_at,
                last_seen_at=facts[row.id].last_seen_at,
                is_online=facts[row.id].is_online(self._clock.now()),
                report=report_of[row.id],
                wish=_wish_of(book, facts[row.id]),
            )
            for row in known
        ]


def _wish_of(book: FleetBook, facts: DeviceFacts) -> Wish | None:
    return book.wish_for(facts, facts.runs, facts.told)


def _conditions(wanted: DeviceFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.group is not None:
        conditions.append(DeviceRow.group_name == wanted.group)
    if wanted.channel is not None:
        conditions.append(follows(wanted.channel))
    if wanted.bundle_id is not None:
        conditions.append(DeviceStateRow.bundle_id == wanted.bundle_id)
    if wanted.is_retired is not None:
        retired = DeviceRow.retired_at
        conditions.append(retired.is_not(None) if wanted.is_retired else retired.is_(None))
    return conditions


def _median(values: Iterable[float | None]) -> tuple[float | None, int]:
    known = [value for value in values if value is not None]
    return (median(known) if known else None), len(known)


def _device_row(session: Session, project_id: str, device_id: str) -> DeviceRow:
    row = session.get(DeviceRow, device_id)
    if row is None or row.project_id != project_id:
        raise NotFound(f"no device has the id {device_id!r}")
    return row
