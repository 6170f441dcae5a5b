"""First answers of requests with an ``Idempotency-Key``, kept for a day."""

from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from maas.core.errors import IdempotencyKeyReused
from maas.store.tenancy_tables import IdempotencyRow

KEPT_S = 24 * 3600
# Of a request that has come and has no answer.
_NO_STATUS = 0
# Of one that was refused: it may be mended.
_ANY_BODY = ""


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
    """Return the first answer to a request; none where it never came, or a day ago.

    Raises:
        IdempotencyKeyReused: The key came with another request.
    """
    row = _living(session, request, now)
    if row is None or row.body_hash == _ANY_BODY:
        return None
    same = (
        (row.api_key_id, request.api_key_id),
        (row.method, request.method),
        (row.path, request.path),
        (row.body_hash, request.body_hash),
    )
    if any(stored != given for stored, given in same):
        raise IdempotencyKeyReused(
            f"the Idempotency-Key {request.key!r} was used for another request in the last 24 h; "
            "use a new one",
            param="Idempotency-Key",
        )
    return None if row.status == _NO_STATUS else _answer_of(row)


def claim(session: Session, request: IdempotentRequest, now: float) -> float:
    """Write down that a request has come, before anything is done for it.

    Returns:
        When its key came first: the same for all who ask with it within a day.
    """
    row = _living(session, request, now)
    if row is None:
        row = _added(session, request, now)
    elif row.body_hash == _ANY_BODY:
        row.api_key_id, row.method, row.path = request.api_key_id, request.method, request.path
        row.body_hash = request.body_hash
    return row.created_at


def keep_answer(
    session: Session, request: IdempotentRequest, answer: StoredAnswer, now: float
) -> StoredAnswer:
    """Write down the first answer, in the transaction of what the request did.

    Returns:
        The first one: another where somebody was faster.
    """
    row = _living(session, request, now) or _added(session, request, now)
    if row.status == _NO_STATUS:
        row.status, row.headers, row.body = answer.status, dict(answer.headers), answer.body
        row.completed_at = now
        session.flush()
    return _answer_of(row)


def let_mend(session: Session, request: IdempotentRequest, now: float) -> None:
    """Let another request come with the key of one that was claimed and then refused."""
    row = _living(session, request, now)
    if row is not None and row.status == _NO_STATUS:
        row.body_hash = _ANY_BODY


def _living(session: Session, request: IdempotentRequest, now: float) -> IdempotencyRow | None:
    row = session.get(IdempotencyRow, (request.project_id, request.key))
    return None if row is None or row.created_at <= now - KEPT_S else row


def _added(session: Session, request: IdempotentRequest, now: float) -> IdempotencyRow:
    """Add a row without an answer, once those that are over are gone: one may have its key."""
    stale = select(IdempotencyRow.key).where(IdempotencyRow.created_at <= now - KEPT_S).limit(1)
    if session.scalars(stale).first() is not None:
        session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at <= now - KEPT_S))
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


def _answer_of(row: IdempotencyRow) -> StoredAnswer:
    return StoredAnswer(row.status, {n: str(v) for n, v in row.headers.items()}, row.body)
