"""Where the databases we run on differ: inserts that may lose a race, locks by name."""

import zlib
from typing import Any

from sqlalchemy import text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from maas.store.tables import Base


def _is_postgresql(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"


def insert_missing(session: Session, table: type[Base], **values: Any) -> None:
    """Insert a row unless its primary key is taken; a racing insert is waited for."""
    dialect = postgresql if _is_postgresql(session) else sqlite
    session.execute(dialect.insert(table).values(**values).on_conflict_do_nothing())


def lock_by_name(session: Session, name: str, *, is_shared: bool) -> None:
    """Hold a named lock to the end of the transaction; take it before any row's.

    SQLite has one writer at a time, and needs none.
    """
    if _is_postgresql(session):
        function = "pg_advisory_xact_lock_shared" if is_shared else "pg_advisory_xact_lock"
        number = zlib.crc32(name.encode())
        session.execute(text(f"SELECT {function}(:number)"), {"number": number})
