"""The audit log: every change of an audited table, written in the transaction that makes it.

An entry's hash covers the entry and the hash before it, so a changed, removed or reordered row
breaks the chain at its place; ``audit_head`` holds the newest hash, so a removed end is noticed
too. Writers queue (``maas.store.dialects``), so the chain has one end.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Any, cast

from sqlalchemy import inspect
from sqlalchemy.orm import ORMExecuteState, Session, UOWTransaction

from maas.store.actor import current_actor
from maas.store.tables import Base
from maas.store.tenancy_tables import AuditHeadRow, AuditRow, ProjectRow

FIRST_HASH = "0" * 64
_SECRET_OPTION = "secret"  # noqa: S105 - the name of an option, not a secret
# Columns whose filling in has a name of its own.
_ENDINGS = {
    "archived_at": "archived",
    "deleted_at": "deleted",
    "revoked_at": "deleted",
    "retired_at": "retired",
}
# What OpenAI calls these.
_RENAMED = {"user.created": "user.added", "rate_limit.created": "rate_limit.updated"}


@dataclass(frozen=True)
class AuditEntry:
    """One change.

    Attributes:
        action: ``project.created``, ``api_key.deleted`` ...
        before: The columns that changed, as they were; none for what is new.
        after: The same as they are; all of them for what is new; none for what is gone.
    """

    seq: int
    at: float
    actor_kind: str
    actor_id: str
    request_id: str
    action: str
    resource: str
    resource_id: str
    project_id: str | None
    organization_id: str | None
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    previous_hash: str
    hash: str


def record_of(row: AuditRow) -> AuditEntry:
    """Return the row as a frozen record."""
    return AuditEntry(**{name: getattr(row, name) for name in AuditEntry.__dataclass_fields__})


def hash_of(entry: AuditEntry) -> str:
    """Return the SHA-256 of all of an entry but its own hash, as canonical JSON."""
    fields = asdict(entry)
    del fields["hash"]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def find_faults(entries: Iterable[AuditEntry], head: tuple[int, str] | None) -> Iterator[str]:
    """Yield what is wrong with a log, in words.

    Args:
        entries: The whole log, in the order of ``seq``.
        head: Number and hash of the newest entry; none where that is not known.
    """
    seq, previous = 0, FIRST_HASH
    for entry in entries:
        if entry.seq != seq + 1:
            yield f"entry {entry.seq} follows entry {seq}: entries are missing or out of order"
        elif entry.previous_hash != previous:
            yield f"entry {entry.seq} does not follow from entry {seq}: one of them was changed"
        if hash_of(entry) != entry.hash:
            yield f"entry {entry.seq} was changed after it was written"
        seq, previous = entry.seq, entry.hash
    if head is not None and head != (seq, previous):
        yield f"the log ends with entry {seq}, but entry {head[0]} was written: its end is missing"


def record_changes(session: Session, _context: UOWTransaction, _instances: object) -> None:
    """Write an entry for every audited row that this flush changes."""
    changes = [
        change
        for rows in (session.new, session.dirty, session.deleted)
        for row in rows
        if isinstance(row, Base) and row.__audit__ is not None
        for change in _change_of(row, is_deleted=row in session.deleted)
    ]
    if not changes:
        return
    with session.no_autoflush:
        head = session.get_one(AuditHeadRow, 1)
        for row, action, before, after in changes:
            entry = _entry(session, head, row=row, action=action, before=before, after=after)
            session.add(AuditRow(**asdict(entry)))
            head.seq, head.hash = entry.seq, entry.hash


def refuse_bulk_changes(state: ORMExecuteState) -> None:
    """Refuse statements that would change audited rows past the log.

    A statement that updates nothing but what the log ignores is let through.

    Raises:
        RuntimeError: The statement changes an audited table; rows must be loaded and changed.
    """
    mapper = state.bind_mapper
    if mapper is None or state.is_select:
        return
    row_type: type[Base] = mapper.class_
    if row_type.__audit__ is None:
        return
    if state.is_update and _updated_columns(state.statement) <= row_type.__audit_ignored__:
        return
    raise RuntimeError(f"{row_type.__tablename__} is audited: change its rows one by one")


def _updated_columns(statement: Any) -> set[str]:
    """Return the columns that an UPDATE sets by itself; ``*`` where that cannot be known."""
    values: Mapping[Any, Any] | None = statement._values
    return {column.key for column in values} if values else {"*"}


_Change = tuple[Base, str, dict[str, Any] | None, dict[str, Any] | None]


def _change_of(row: Base, *, is_deleted: bool) -> Iterator[_Change]:
    state = inspect(row)
    shown = [a.key for a in state.mapper.column_attrs if a.key not in row.__audit_hidden__]
    now = {name: _plain(getattr(row, name)) for name in shown}
    if is_deleted:
        yield row, "deleted", now, None
    elif not state.has_identity:
        yield row, "created", None, now
    else:
        changed = [name for name in shown if state.attrs[name].history.has_changes()]
        if not set(changed) <= row.__audit_ignored__:
            was = {name: _plain(_first(state.attrs[name].history.deleted)) for name in changed}
            ended = (_ENDINGS[n] for n in changed if n in _ENDINGS and was[n] is None)
            action = next(ended, "updated")
            yield row, action, was, {name: now[name] for name in changed}


def _first(values: Any) -> Any:
    return values[0] if values else None


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it, without secrets."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        options = cast("dict[str, Any]", value)
        return {name: "***" if name == _SECRET_OPTION else options[name] for name in options}
    return value


def _entry(
    session: Session,
    head: AuditHeadRow,
    *,
    row: Base,
    action: str,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
) -> AuditEntry:
    actor = current_actor()
    named = f"{row.__audit__}.{action}"
    project_id, organization_id = _tenant_of(session, row)
    entry = AuditEntry(
        seq=head.seq + 1,
        at=time.time(),
        actor_kind=actor.kind,
        actor_id=actor.id[:255],
        request_id=actor.request_id,
        action=_RENAMED.get(named, named),
        resource=str(row.__audit__),
        # A row of two keys (a project's member) is named by both.
        resource_id="/".join(str(getattr(row, a.key)) for a in _key_of(row)),
        project_id=project_id,
        organization_id=organization_id,
        before=before,
        after=after,
        previous_hash=head.hash,
        hash="",
    )
    return replace(entry, hash=hash_of(entry))


def _key_of(row: Base) -> list[Any]:
    mapper = inspect(row).mapper
    return [mapper.get_property_by_column(column) for column in mapper.primary_key]


def _tenant_of(session: Session, row: Base) -> tuple[str | None, str | None]:
    kind = row.__tablename__
    if kind == "organizations":
        return None, str(row.__dict__["id"])
    project_id = row.__dict__["id"] if kind == "projects" else row.__dict__.get("project_id")
    organization_id = row.__dict__.get("organization_id")
    if organization_id is None and project_id is not None:
        project = session.get(ProjectRow, project_id) or next(
            (r for r in session.new if isinstance(r, ProjectRow) and r.id == project_id), None
        )
        organization_id = project.organization_id if project is not None else None
    return project_id, organization_id
