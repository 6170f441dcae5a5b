"""Reading the audit log: pages with filters, the whole of it as lines, and whether it is whole."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from sqlalchemy import Select, func, select

from maas.core.errors import InvalidRequest
from maas.store.audit import AuditEntry, find_faults, record_of
from maas.store.database import Database
from maas.store.pages import Page
from maas.store.tenancy_tables import AuditHeadRow, AuditRow

_BATCH = 1000
MAX_FAULTS = 20


@dataclass(frozen=True)
class AuditFilter:
    """Which entries are wanted. Empty and None want all.

    Attributes:
        since: Epoch seconds of the first moment that is in.
        until: Epoch seconds of the first moment that is out.
    """

    organization_id: str | None = None
    project_ids: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    actor_ids: tuple[str, ...] = ()
    resource_ids: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None

    def apply(self, statement: Select[AuditRow]) -> Select[AuditRow]:
        """Return the statement with these conditions."""
        if self.organization_id is not None:
            statement = statement.where(AuditRow.organization_id == self.organization_id)
        for column, values in (
            (AuditRow.project_id, self.project_ids),
            (AuditRow.action, self.actions),
            (AuditRow.actor_id, self.actor_ids),
            (AuditRow.resource_id, self.resource_ids),
        ):
            if values:
                statement = statement.where(column.in_(values))
        if self.since is not None:
            statement = statement.where(AuditRow.at >= self.since)
        if self.until is not None:
            statement = statement.where(AuditRow.at < self.until)
        return statement


@dataclass(frozen=True)
class Verdict:
    """Whether the log is whole.

    Attributes:
        head_hash: Hash of the newest entry: kept elsewhere, it shows later that nothing of what
            was there then has changed.
        faults: What is wrong, in words; the first few.
    """

    is_whole: bool
    num_entries: int
    head_seq: int
    head_hash: str
    faults: tuple[str, ...]


class AuditLog:
    """Reads the audit log. Nothing writes to it but ``maas.store.audit``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(
        self,
        wanted: AuditFilter,
        *,
        limit: int,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[AuditEntry]:
        """Return entries, newest first.

        Args:
            wanted: Which ones.
            limit: Most of them.
            after: Number of the last entry of the page before.
            before: Number of the first entry of the page after.

        Raises:
            InvalidRequest: A cursor is no number of an entry.
        """
        statement = wanted.apply(select(AuditRow))
        if after is not None:
            statement = statement.where(AuditRow.seq < _seq(after, "after"))
        if before is not None:
            statement = statement.where(AuditRow.seq > _seq(before, "before"))
        order = AuditRow.seq if before is not None else AuditRow.seq.desc()
        with self._database.read() as session:
            rows = session.scalars(statement.order_by(order).limit(limit + 1)).all()
            found = [record_of(row) for row in rows[:limit]]
        if before is not None:
            found.reverse()
        return Page(tuple(found), len(rows) > limit)

    def export(self, wanted: AuditFilter | None = None) -> Iterator[str]:
        """Yield the log as lines of JSON, oldest first."""
        for entry in self._entries(wanted or AuditFilter()):
            yield json.dumps(asdict(entry), sort_keys=True)

    def verify(self) -> Verdict:
        """Check the whole log against its hashes."""
        with self._database.read() as session:
            head = session.get(AuditHeadRow, 1)
            num_entries = session.scalars(select(func.count()).select_from(AuditRow)).one()
        known = (head.seq, head.hash) if head is not None else (0, "")
        # What is written while we read is not looked at: the head was read first.
        entries = (entry for entry in self._entries(AuditFilter()) if entry.seq <= known[0])
        faults = tuple(_first(find_faults(entries, known), MAX_FAULTS))
        if not faults and num_entries != known[0]:
            # Before the first entry or after the last one, where no hash leads.
            faults = (f"the log has {num_entries} entries, but {known[0]} were written",)
        return Verdict(not faults, num_entries, *known, faults)

    def holds(self, entry_hash: str) -> bool:
        """Say whether an entry with this hash is in the log."""
        with self._database.read() as session:
            found = select(AuditRow.seq).where(AuditRow.hash == entry_hash)
            return session.scalars(found).first() is not None

    def _entries(self, wanted: AuditFilter) -> Iterator[AuditEntry]:
        last = 0
        while True:
            statement = wanted.apply(select(AuditRow)).where(AuditRow.seq > last)
            with self._database.read() as session:
                rows = session.scalars(statement.order_by(AuditRow.seq).limit(_BATCH)).all()
                found = [record_of(row) for row in rows]
            if not found:
                return
            yield from found
            last = found[-1].seq


def verify_lines(lines: Iterable[str]) -> Verdict:
    """Check an export of the whole log against its own hashes.

    Raises:
        InvalidRequest: A line is no entry.
    """
    entries: list[AuditEntry] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entries.append(AuditEntry(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise InvalidRequest(f"line {number} is no entry of an audit log") from error
    faults = tuple(_first(find_faults(entries, None), MAX_FAULTS))
    end = (entries[-1].seq, entries[-1].hash) if entries else (0, "")
    return Verdict(not faults, len(entries), *end, faults)


def _first(faults: Iterator[str], most: int) -> Iterator[str]:
    for _, fault in zip(range(most), faults, strict=False):
        yield fault


def _seq(cursor: str, name: str) -> int:
    digits = cursor.removeprefix("audit-")
    if not digits.isdecimal() or len(digits) > 18:
        raise InvalidRequest(f"{name}: {cursor!r} is no entry of the audit log", param=name)
    return int(digits)
