"""Opening the store: engine, transactions, and its errors in the platform's own words."""

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sqlalchemy import Engine, event, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from maas.core.settings import StoreSettings
from maas.store.audit import record_changes, refuse_bulk_changes
from maas.store.backups import Backups
from maas.store.dialects import dialect_of, parse_url, shown
from maas.store.failures import is_connection_lost, translated
from maas.store.migrate import MIGRATIONS_DIR, Migrator
from maas.store.tables import RevisionRow
from maas.store.transactions import joined_session, joining

# A server that restarts is away for a moment; a transaction that has not begun can wait for it.
_PAUSES_S = (0.1, 0.3, 0.6, 1.0)
_BEGIN_WITHIN_S = 5.0


class Database:
    """The store. One per process; safe to use from many threads.

    Args:
        url: SQLite or PostgreSQL.
        settings: Pool and timeouts.

    Raises:
        ConfigError: The URL is none, or of another kind of database.
    """

    def __init__(self, url: str, settings: StoreSettings | None = None) -> None:
        parsed = parse_url(url)
        self.name = shown(parsed)
        self._settings = settings or StoreSettings()
        self._dialect = dialect_of(parsed, self._settings)
        self.engine: Engine = self._dialect.connect(parsed)
        self._session: sessionmaker[Session] = sessionmaker(self.engine, expire_on_commit=False)
        event.listen(self._session, "before_flush", record_changes)
        event.listen(self._session, "do_orm_execute", refuse_bulk_changes)

    @property
    def is_embedded(self) -> bool:
        """Whether the store is a file that no other machine can use."""
        return self.engine.dialect.name == "sqlite"

    @property
    def clock_offset_s(self) -> float | None:
        """The server's time less ``time.monotonic``; none for a file, or before a connection."""
        return self._dialect.clock_offset_s

    @contextmanager
    def read(self) -> Generator[Session]:
        """Open a session that sees one consistent state and writes nothing."""
        joined = joined_session(self.engine)
        if joined is not None:
            with translated(self.name):
                yield joined
            return
        with translated(self.name), self._open(self._dialect.begin_read) as session:
            yield session

    @contextmanager
    def write(self, *, bump_revision: bool = True) -> Generator[Session]:
        """Open a transaction that is committed whole or not at all, after the writers before it.

        Args:
            bump_revision: Whether gateways must read desired state anew. Heartbeats say no.
        """
        joined = joined_session(self.engine)
        if joined is not None:
            with translated(self.name), joined.begin_nested():
                yield joined
                self._bump(joined, is_wanted=bump_revision)
            return
        with translated(self.name), self._open(self._dialect.begin_write) as session:
            yield session
            self._bump(session, is_wanted=bump_revision)
            session.commit()

    @contextmanager
    def together(self) -> Generator[None]:
        """Make one transaction of all that is written inside."""
        with self.write(bump_revision=False) as session, joining(session):
            yield

    def begin(self) -> Session:
        """Begin a transaction that others join (``maas.store.transactions.joining``).

        The caller commits it, or rolls it back, and closes it.
        """
        with translated(self.name):
            return self._open(self._dialect.begin_write)

    def translated(self) -> AbstractContextManager[None]:
        """Raise the platform's errors for the database's, in work on a session of ``begin``."""
        return translated(self.name)

    def _bump(self, session: Session, *, is_wanted: bool) -> None:
        if is_wanted:
            move_revision(session)

    def migrate(self, *, backups_dir: Path | None = None) -> None:
        """Bring the tables to this version's shape: all of it or nothing.

        Args:
            backups_dir: Where a SQLite store is copied to before it is changed.

        Raises:
            DiskFull: No room left for the database or its copy.
            HostError: It cannot be opened, or is of a newer version than this one.
        """
        backups = Backups(backups_dir, keep=self._settings.num_backups) if backups_dir else None
        self.migrator(backups).run()

    def migrator(
        self, backups: Backups | None = None, *, migrations_dir: Path = MIGRATIONS_DIR
    ) -> Migrator:
        """Return what changes the tables' shape.

        Args:
            backups: Where a SQLite store is copied to before it is changed; none makes no copy.
            migrations_dir: Alembic's folder.
        """
        return Migrator(
            self.engine,
            self._dialect,
            name=self.name,
            backups=backups,
            migrations_dir=migrations_dir,
        )

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    def _open(self, begin: Callable[[Session], None]) -> Session:
        pauses = iter(_PAUSES_S)
        deadline = time.monotonic() + _BEGIN_WITHIN_S
        while True:
            session = self._session()
            try:
                begin(session)
            except SQLAlchemyError as error:
                session.close()
                pause = next(pauses, None)
                if pause is None or time.monotonic() + pause > deadline:
                    raise
                if not is_connection_lost(error):
                    raise
                time.sleep(pause)
            else:
                return session


def move_revision(session: Session) -> None:
    """Say that desired state is another one: gateways and replicas read it anew."""
    session.execute(update(RevisionRow).values(value=RevisionRow.value + 1))
