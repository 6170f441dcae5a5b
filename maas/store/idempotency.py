"""First answers of requests with an ``Idempotency-Key``, kept for a day."""

from dataclasses import dataclass

from sqlalchemy import delete, select, tuple_
from sqlalchemy.orm import Session

from maas.core.errors import IdempotencyKeyReused
from maas.store.tenancy_tables import IdempotencyRow

KEPT_S = 24 * 3600
# Of a request that has come and has no answer.
_NO_STATUS = 0
# Rows that are over, deleted with each new one: more than come, and no long statement.
_NUM_DELETED = 100


@dataclass(frozen=True)
class IdempotentRequest:
    """A request that may come again.

    Attributes:
        key: As the client chose it.
        body_hash: Of path, query, organisation and body.
    """

    project_id: str
    key: str
    api_key_id: str
    method: str
    path: str
    body_hash: str


@dataclass(frozen=True)
class StoredAnswer:
    """An answer as it was given first; ``body`` is sealed by the caller."""

    status: int
    headers: dict[str, str]
    body: bytes


def find_answer(session: Session, request: IdempotentRequest, now: float) -> StoredAnswer | None:
    """Return the first answer to a request; none where it has none, or it came a day ago.

    Raises:
        IdempotencyKeyReused: The key came with another request.
    """
    row = _living(session, request, now)
    if row is None:
        return None
    _check_same(row, request)
    return None if row.status == _NO_STATUS else _answer_of(row)


def claim(session: Session, request: IdempotentRequest, now: float) -> float:
    """Write down that a request has come, before anything is done for it.

    Returns:
        When it came first: the same for all who ask with its key within a day.

    Raises:
        IdempotencyKeyReused: The key came with another request.
    """
    row = _living(session, request, now) or _added(session, request, now)
    _check_same(row, request)
    return row.created_at


def keep_answer(
    session: Session, request: IdempotentRequest, answer: StoredAnswer, now: float
) -> StoredAnswer:
    """Write down the first answer to a request.

    Returns:
        The first one: another where somebody was faster. The given one, unkept, where its key
        belongs to another request by now.
    """
    row = _living(session, request, now) or _added(session, request, now)
    if not _is_same(row, request):
        return answer
    if row.status == _NO_STATUS:
        row.status, row.headers, row.body = answer.status, dict(answer.headers), answer.body
        row.completed_at = now
        session.flush()
    return _answer_of(row)


def reused(request: IdempotentRequest) -> IdempotencyKeyReused:
    """Return what is said of a key that came with another request."""
    return IdempotencyKeyReused(
        f"the Idempotency-Key {request.key!r} was used for another request in the last 24 h; "
        "use a new one",
        param="Idempotency-Key",
    )


def _is_same(row: IdempotencyRow, request: IdempotentRequest) -> bool:
    stored = (row.api_key_id, row.method, row.path, row.body_hash)
    return stored == (request.api_key_id, request.method, request.path, request.body_hash)


def _check_same(row: IdempotencyRow, request: IdempotentRequest) -> None:
    if not _is_same(row, request):
        raise reused(request)


def _living(session: Session, request: IdempotentRequest, now: float) -> IdempotencyRow | None:
    row = session.get(IdempotencyRow, (request.project_id, request.key))
    return None if row is None or row.created_at <= now - KEPT_S else row


def _added(session: Session, request: IdempotentRequest, now: float) -> IdempotencyRow:
    """Add a row without an answer; what had its key is gone, and some of what is over, too."""
    _delete_over(session, request, now)
    row = IdempotencyRow(
        project_id=request.project_id,
        key=request.key,
        api_key_id=request.api_key_id,
        method=request.method,
        path=request.path,
        body_hash=request.body_hash,
        status=_NO_STATUS,
        headers={},
        body=b"",
        created_at=now,
        completed_at=now,
    )
    session.add(row)
    session.flush()
    return row


def _delete_over(session: Session, request: IdempotentRequest, now: float) -> None:
    name = tuple_(IdempotencyRow.project_id, IdempotencyRow.key)
    some = (
        select(IdempotencyRow.project_id, IdempotencyRow.key)
        .where(IdempotencyRow.created_at <= now - KEPT_S)
        .limit(_NUM_DELETED)
    )
    over = {(project_id, key) for project_id, key in session.execute(some)}
    over.add((request.project_id, request.key))
    session.execute(delete(IdempotencyRow).where(name.in_(list(over))))


def _answer_of(row: IdempotencyRow) -> StoredAnswer:
    return StoredAnswer(row.status, {n: str(v) for n, v in row.headers.items()}, row.body)
