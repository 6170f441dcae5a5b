"""The database's errors in the platform's own words, without statements, values or passwords."""

from collections.abc import Generator
from contextlib import contextmanager

from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    OperationalError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.exc import (
    TimeoutError as PoolTimeout,
)

from maas.core.errors import (
    Conflict,
    DiskFull,
    HostError,
    InvalidRequest,
    MaasError,
    StoreUnavailable,
)

_DISK_FULL = ("disk is full", "disk I/O error", "No space left on device")
_LOCKED = "database is locked"
# SQLSTATEs: connection exceptions, the server stops or starts, nothing left for one more.
_LOST = ("08", "57P01", "57P02", "57P03", "53300", "25P03")
# Waited too long for a lock or an answer; somebody else was in the way (never ours: one lock).
_BUSY = ("55P03", "57014", "40001", "40P01")


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def is_connection_lost(error: SQLAlchemyError) -> bool:
    """Say whether the server could not be reached, so that trying again may help."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = _sqlstate(error)
    if state is not None:
        return state.startswith(_LOST)
    # Refused before there was a session: libpq gives no state then. SQLite always has none.
    return isinstance(error, OperationalError) and hasattr(error.orig, "sqlstate")


def _words(error: SQLAlchemyError) -> str:
    """Return the first line that the driver said: no statement, no values."""
    cause = error.orig if isinstance(error, StatementError) else error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]


def explain(error: SQLAlchemyError, name: str) -> MaasError:
    """Return the platform's error for one of the database's.

    Args:
        error: What was raised.
        name: The store's URL as it may be shown.
    """
    if isinstance(error, StatementError) and isinstance(error.orig, MaasError):
        return error.orig
    words = _words(error)
    if any(sign in words for sign in _DISK_FULL):
        return DiskFull(f"the store {name} has no room left: {words}")
    if isinstance(error, IntegrityError):
        return Conflict(f"the change contradicts what the store holds: {words}")
    if isinstance(error, DataError):
        return InvalidRequest(f"a value cannot be stored: {words}")
    if is_connection_lost(error):
        return StoreUnavailable(f"the store {name} does not answer: {words}")
    state = _sqlstate(error) if isinstance(error, DBAPIError) else None
    is_busy = isinstance(error, PoolTimeout) or _LOCKED in words or state in _BUSY
    if is_busy:
        return StoreUnavailable(f"the store {name} is busy; try again: {words}")
    return HostError(f"the store {name} cannot be used: {words}")


@contextmanager
def translated(name: str) -> Generator[None]:
    """Raise the platform's errors in place of the database's.

    Args:
        name: The store's URL as it may be shown.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise explain(error, name) from error
