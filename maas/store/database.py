"""Opening the store: engine, transactions, migrations."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from maas.core.errors import DiskFull, HostError
from maas.store.tables import RevisionRow

BUSY_TIMEOUT_MS = 10_000
_MIGRATIONS = Path(__file__).parent / "migrations"


def _configure_sqlite(connection: Any, _record: object) -> None:
    # Autocommit at the driver: SQLAlchemy's own BEGIN (below) must be the only one.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


class Database:
    """The store. One per process; safe to use from many threads.

    Args:
        url: SQLAlchemy URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine: Engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        if url.startswith("sqlite"):
            event.listen(self.engine, "connect", _configure_sqlite)
        self._session: Callable[[], Session] = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def read(self) -> Generator[Session]:
        """Open a session that sees one consistent state and writes nothing."""
        with self._translated(), self._session() as session:
            self._begin(session.connection(), "BEGIN")
            yield session

    @contextmanager
    def write(self, *, bump_revision: bool = True) -> Generator[Session]:
        """Open a transaction that is committed whole or not at all.

        Args:
            bump_revision: Whether gateways must read desired state anew. Heartbeats say no.
        """
        with self._translated(), self._session() as session, session.begin():
            # Taking the write lock first makes two writers queue instead of failing half way.
            self._begin(session.connection(), "BEGIN IMMEDIATE")
            yield session
            if bump_revision:
                session.execute(update(RevisionRow).values(value=RevisionRow.value + 1))

    def migrate(self) -> None:
        """Bring the tables to this version's shape.

        Raises:
            DiskFull: No room left for the database.
            HostError: The database cannot be opened.
        """
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self._translated(), self.engine.begin() as connection:
            self._begin(connection, "BEGIN IMMEDIATE")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    def _begin(self, connection: Connection, statement: str) -> None:
        # SQLite's driver begins late and shared by itself; other databases need nothing here.
        if self.url.startswith("sqlite"):
            connection.exec_driver_sql(statement)

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            message = str(error)
            if "disk is full" in message or "disk I/O error" in message:
                raise DiskFull(f"the store {self.url} has no room left: {message}") from error
            raise HostError(f"the store {self.url} cannot be used: {message}") from error
