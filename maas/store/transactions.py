"""One transaction that everything written in a context joins: all of it happens, or nothing."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from sqlalchemy import Engine
from sqlalchemy.orm import Session

_JOINED: ContextVar[Session | None] = ContextVar("joined", default=None)


def joined_session(engine: Engine) -> Session | None:
    """Return the session that this context's reads and writes of a store belong to."""
    session = _JOINED.get()
    return session if session is not None and session.get_bind() is engine else None


@contextmanager
def joining(session: Session) -> Generator[None]:
    """Let what is read and written inside belong to a session's transaction."""
    token = _JOINED.set(session)
    try:
        yield
    finally:
        _JOINED.reset(token)
