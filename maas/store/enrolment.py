"""Enrolment: a code, used once, makes a device and its key.

The code has 140 random bits and only its hash is stored, so that one look-up by the hash tells
nobody anything. Whoever used it may ask again with the same nonce for a day, and gets the same
device and key: the answer may have been lost on its way. The key is sealed meanwhile.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from maas.core.clock import Clock
from maas.core.errors import InvalidEnrolmentCode, NotFound
from maas.core.ids import ALPHABET, new_id
from maas.store.database import Database
from maas.store.device_events import News, tell
from maas.store.device_groups import needed_group
from maas.store.device_keys import device_terms
from maas.store.fleet_records import EnrolmentCode, code_of
from maas.store.fleet_tables import DeviceRow, DeviceStateRow, EnrolmentCodeRow
from maas.store.keys import new_row
from maas.store.pages import Page, Window, read_page
from maas.store.secrets import Sealing
from maas.store.tenancy_tables import OrganizationRow, ProjectRow
from maas.store.text import as_name

REPLAYED_S = 24 * 3600.0
# A code that nobody used is shown for a while after its end.
KEPT_S = 30 * 86400.0
_NUM_DIGITS, _GROUP = 28, 4
_REFUSED = "the enrolment code is unknown, used or expired; make one with: maas device enrol-code"
_AT_ONCE = 200
# Letters that are read for others, on a label or a screen.
_MISREAD = str.maketrans("oil", "011")
_NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Applicant:
    """A device that wants to be enrolled.

    Attributes:
        nonce: Drawn by the device once, and kept: the same code with the same nonce is the same
            request.
    """

    code: str
    nonce: str
    name: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Enrolled:
    """A device and the key that it was given."""

    project_id: str
    device_id: str
    key: str


class EnrolmentRepository:
    """Makes codes, and devices of them."""

    def __init__(self, database: Database, clock: Clock, sealing: Sealing) -> None:
        self._database = database
        self._clock = clock
        self._sealing = sealing

    def create(
        self,
        project_id: str,
        *,
        group: str,
        name: str | None,
        lifetime_s: float,
        labels: Mapping[str, str],
    ) -> tuple[EnrolmentCode, str]:
        """Make a code.

        Returns:
            The record, and the code itself: the only time anybody sees it.

        Raises:
            NotFound: The project has no such group.
        """
        digits = "".join(secrets.choice(ALPHABET) for _ in range(_NUM_DIGITS))
        now = self._clock.now()
        with self._database.write(bump_revision=False) as session:
            row = EnrolmentCodeRow(
                id=new_id("enrol"),
                project_id=project_id,
                group_name=needed_group(session, project_id, group, now).name,
                name=None if name is None else as_name(name),
                digest=_digest(digits),
                labels=dict(labels),
                created_at=now,
                expires_at=now + lifetime_s,
            )
            session.add(row)
            session.flush()
            return code_of(row), "-".join(
                digits[at : at + _GROUP] for at in range(0, _NUM_DIGITS, _GROUP)
            )

    def list(self, project_id: str, window: Window) -> Page[EnrolmentCode]:
        """Return a page of a project's codes."""
        wanted = select(EnrolmentCodeRow).where(EnrolmentCodeRow.project_id == project_id)
        with self._database.read() as session:
            order = (EnrolmentCodeRow.created_at, EnrolmentCodeRow.id)
            page = read_page(session, wanted, order=order, window=window)
            return Page(tuple(code_of(row) for row in page.items), page.has_more)

    def delete(self, project_id: str, code_id: str) -> None:
        """Take a code away; a device that it made stays.

        Raises:
            NotFound: The project has no such code.
        """
        with self._database.write(bump_revision=False) as session:
            row = session.get(EnrolmentCodeRow, code_id)
            if row is None or row.project_id != project_id:
                raise NotFound(f"no enrolment code has the id {code_id!r}")
            session.delete(row)

    def enrol(self, applicant: Applicant) -> Enrolled:
        """Make a device of a code, or return the one that this very request made before.

        Raises:
            InvalidEnrolmentCode: The code makes no device; the words are the same for all causes.
        """
        digits = plain(applicant.code)
        nonce_digest = _digest(applicant.nonce)
        # Guesses take no turn of a writer.
        with self._database.read() as session:
            row = self._check(_find(session, digits), nonce_digest)
            if row.device_id is not None:
                return self._again(session, row)
        with self._database.write() as session:
            row = self._check(_find(session, digits), nonce_digest)
            if row.device_id is not None:
                return self._again(session, row)
            device, key = self._make(session, row, applicant)
            row.used_at, row.device_id = self._clock.now(), device.id
            row.nonce_digest, row.sealed_key = nonce_digest, self._sealing.seal(key)
            return Enrolled(row.project_id, device.id, key)

    def forget(self) -> int:
        """Remove keys that cannot be asked for any more, and codes that are long over."""
        now = self._clock.now()
        answered = (EnrolmentCodeRow.sealed_key.is_not(None)) & (
            EnrolmentCodeRow.used_at <= now - REPLAYED_S
        )
        over = EnrolmentCodeRow.used_at.is_(None) & (EnrolmentCodeRow.expires_at <= now - KEPT_S)
        wanted = select(EnrolmentCodeRow.id).where(or_(answered, over)).limit(_AT_ONCE)
        with self._database.read() as session:
            if session.scalars(wanted).first() is None:
                return 0
        with self._database.write(bump_revision=False) as session:
            rows = _rows(session, or_(answered, over))
            for row in rows:
                if row.used_at is None:
                    session.delete(row)
                else:
                    row.sealed_key = None
            return len(rows)

    def _check(self, row: EnrolmentCodeRow | None, nonce_digest: str) -> EnrolmentCodeRow:
        """Return a code that makes a device, or made this one a short time ago."""
        now = self._clock.now()
        used_with = (row.nonce_digest if row is not None else None) or _NO_DIGEST
        is_again = hmac.compare_digest(used_with, nonce_digest)
        if row is not None and row.used_at is None and row.expires_at > now:
            return row
        if row is not None and is_again and (row.used_at or 0.0) > now - REPLAYED_S:
            return row
        raise InvalidEnrolmentCode(_REFUSED)

    def _again(self, session: Session, row: EnrolmentCodeRow) -> Enrolled:
        device = session.get_one(DeviceRow, row.device_id)
        if device.retired_at is not None or row.sealed_key is None:
            raise InvalidEnrolmentCode(_REFUSED)
        return Enrolled(row.project_id, device.id, self._sealing.open(row.sealed_key))

    def _make(
        self, session: Session, code: EnrolmentCodeRow, applicant: Applicant
    ) -> tuple[DeviceRow, str]:
        now = self._clock.now()
        group = needed_group(session, code.project_id, code.group_name, now)
        device_id = new_id("device")
        name = as_name(applicant.name or code.name or device_id)
        key, full_key = new_row(code.project_id, name, device_terms(group.fallback_model), now)
        session.add(key)
        session.flush()
        device = DeviceRow(
            id=device_id,
            project_id=code.project_id,
            name=name,
            group_name=group.name,
            channel=None,
            bundle_id=None,
            key_id=key.id,
            facts=dict(applicant.facts),
            labels=dict(code.labels),
            created_at=now,
            retired_at=None,
        )
        session.add(device)
        session.flush()
        session.add(DeviceStateRow(device_id=device.id, told=[]))
        session.flush()
        news = News("enrolled", "enrolled", f"Enrolled as {name}", data={"group": group.name})
        tell(session, device.id, news, now)
        return device, full_key


def plain(code: str) -> str:
    """Return a code as it is hashed: whatever case, dashes and misread letters it was typed with.

    Raises:
        InvalidEnrolmentCode: It cannot be one.
    """
    digits = code.lower().replace("-", "").replace(" ", "").translate(_MISREAD)
    if len(digits) != _NUM_DIGITS or not set(digits) <= set(ALPHABET):
        raise InvalidEnrolmentCode(_REFUSED)
    return digits


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _find(session: Session, digits: str) -> EnrolmentCodeRow | None:
    """Return a code, unless its project or organisation is archived: no key of these works."""
    wanted = (
        select(EnrolmentCodeRow)
        .join(ProjectRow, ProjectRow.id == EnrolmentCodeRow.project_id)
        .join(OrganizationRow, OrganizationRow.id == ProjectRow.organization_id)
        .where(
            EnrolmentCodeRow.digest == _digest(digits),
            ProjectRow.archived_at.is_(None),
            OrganizationRow.archived_at.is_(None),
        )
    )
    return session.scalars(wanted).one_or_none()


def _rows(session: Session, condition: ColumnElement[bool]) -> list[EnrolmentCodeRow]:
    return list(session.scalars(select(EnrolmentCodeRow).where(condition).limit(_AT_ONCE)))
