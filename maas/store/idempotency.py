"""First answers of requests with an ``Idempotency-Key``, kept for a day."""

from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from maas.core.errors import IdempotencyKeyReused
from maas.store.tenancy_tables import IdempotencyRow

KEPT_S = 24 * 3600


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
    row = session.get(IdempotencyRow, (request.project_id, request.key))
    if row is None or row.created_at <= now - KEPT_S:
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
    return StoredAnswer(row.status, {n: str(v) for n, v in row.headers.items()}, row.body)


def keep_answer(
    session: Session, request: IdempotentRequest, answer: StoredAnswer, now: float
) -> None:
    """Write down the first answer, in the transaction of what the request did."""
    stale = select(IdempotencyRow).where(IdempotencyRow.created_at <= now - KEPT_S).limit(1)
    if session.scalars(stale).first() is not None:
        session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at <= now - KEPT_S))
    session.add(
        IdempotencyRow(
            project_id=request.project_id,
            key=request.key,
            api_key_id=request.api_key_id,
            method=request.method,
            path=request.path,
            body_hash=request.body_hash,
            status=answer.status,
            headers=dict(answer.headers),
            body=answer.body,
            created_at=now,
            completed_at=now,
        )
    )
    session.flush()
