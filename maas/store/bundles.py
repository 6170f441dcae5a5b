"""Bundles: what exports made, and devices load."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import Conflict, NotFound
from maas.store.database import Database
from maas.store.edge_tables import BundleRow
from maas.store.fleet_tables import (
    DeviceChannelRow,
    DeviceGroupRow,
    DeviceRolloutRow,
    DeviceRow,
)
from maas.store.pages import Page, Window, read_page
from maas.store.rollout_rules import OVER


@dataclass(frozen=True)
class Bundle:
    """A bundle of a project.

    Attributes:
        id: The hash of its manifest, and so of every part.
        manifest: ``bundle.json`` as it is in the file.
    """

    id: str
    project_id: str
    name: str
    model_id: str
    blob_key: str
    size_bytes: int
    manifest: Mapping[str, Any]
    created_at: float
    deleted_at: float | None


class BundleRepository:
    """Reads bundles, and takes them away."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def get(self, project_id: str, bundle_id: str) -> Bundle:
        """Return a project's bundle.

        Raises:
            NotFound: It has none with this id.
        """
        with self._database.read() as session:
            return bundle_of(bundle_row(session, project_id, bundle_id))

    def list(self, project_id: str, window: Window) -> Page[Bundle]:
        """Return a page of a project's bundles."""
        wanted = select(BundleRow).where(
            BundleRow.project_id == project_id, BundleRow.deleted_at.is_(None)
        )
        with self._database.read() as session:
            order = (BundleRow.created_at, BundleRow.id)
            page = read_page(session, wanted, order=order, window=window)
            return Page(tuple(bundle_of(row) for row in page.items), page.has_more)

    def blob_keys(self) -> frozenset[str]:
        """Return where the bytes are of all bundles that are not deleted."""
        wanted = select(BundleRow.blob_key).where(BundleRow.deleted_at.is_(None))
        with self._database.read() as session:
            return frozenset(session.scalars(wanted))

    def delete(self, project_id: str, bundle_id: str) -> None:
        """Take a bundle away; its bytes go later.

        Raises:
            NotFound: The project has none with this id.
            Conflict: Devices are to run it.
        """
        with self._database.write(bump_revision=False) as session:
            row = bundle_row(session, project_id, bundle_id)
            user = _user_of(session, bundle_id)
            if user is not None:
                raise Conflict(f"bundle {bundle_id} is what {user} should run")
            row.deleted_at = self._clock.now()


def bundle_of(row: BundleRow) -> Bundle:
    """Return the row as a frozen record."""
    return Bundle(**{name: getattr(row, name) for name in Bundle.__dataclass_fields__})


def bundle_row(session: Session, project_id: str, bundle_id: str) -> BundleRow:
    """Return a bundle's row.

    Raises:
        NotFound: The project has none with this id.
    """
    row = session.get(BundleRow, bundle_id)
    if row is None or row.project_id != project_id or row.deleted_at is not None:
        raise NotFound(f"no bundle has the id {bundle_id!r}")
    return row


def _user_of(session: Session, bundle_id: str) -> str | None:
    """Return who should run a bundle, in words."""
    device = select(DeviceRow.id).where(
        DeviceRow.bundle_id == bundle_id, DeviceRow.retired_at.is_(None)
    )
    group = select(DeviceGroupRow.name).where(DeviceGroupRow.bundle_id == bundle_id)
    channel = select(DeviceChannelRow.name).where(DeviceChannelRow.bundle_id == bundle_id)
    rollout = select(DeviceRolloutRow.id).where(
        DeviceRolloutRow.bundle_id == bundle_id,
        DeviceRolloutRow.status.not_in([status.value for status in OVER]),
    )
    for kind, wanted in (
        ("the device", device),
        ("the group", group),
        ("the channel", channel),
        ("the devices of the rollout", rollout),
    ):
        name = session.scalars(wanted.limit(1)).first()
        if name is not None:
            return f"{kind} {name}"
    return None
