"""What differs between SQLite and PostgreSQL: how to connect, how a transaction begins.

On both, whoever writes waits for the writers before it and then sees all that they did: SQLite
has one write lock (``BEGIN IMMEDIATE``), on PostgreSQL every writing transaction takes one
advisory lock first. So no write fails half way with a deadlock or a serialization failure, and
what holds on one database holds on the other (docs/adr/0007).
"""

import sqlite3
import time
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session

from maas.core.errors import ConfigError
from maas.core.settings import StoreSettings

BUSY_TIMEOUT_MS = 10_000
# The advisory lock of all writers; any number that nobody else uses in this database.
WRITE_LOCK = 0x6D616173
MIGRATION_WAIT_S = 300
_DRAWN = "postgresql://USER:PASSWORD@HOST:PORT/NAME or sqlite:////path/to/file"


def parse_url(text: str) -> URL:
    """Return the URL of a store, with the driver that this platform uses.

    Raises:
        ConfigError: It is no URL, or names a database that is not supported. The message does
            not repeat it: it may hold a password.
    """
    try:
        url = make_url(text)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):
        raise ConfigError(
            f"setting 'database_url' (MAAS_DATABASE_URL) is not a URL: want {_DRAWN}; "
            "write special characters of a password as %XX",
            param="database_url",
        ) from None
    if backend in {"postgresql", "postgres"}:
        return _with_password_in_place(url.set(drivername="postgresql+psycopg"))
    if backend == "sqlite":
        return url.set(drivername="sqlite")
    raise ConfigError(
        f"setting 'database_url' (MAAS_DATABASE_URL): {backend!r} is not supported: want {_DRAWN}",
        param="database_url",
    )


def _with_password_in_place(url: URL) -> URL:
    """Return a URL whose password is where it is masked when the URL is printed."""
    given = url.query.get("password")
    if given is None:
        return url
    password = given if isinstance(given, str) else given[-1]
    return url.difference_update_query(["password"]).set(password=password)


def shown(url: URL) -> str:
    """Return a URL as it may be logged: no password, and none of the parameters."""
    return url.set(query={}).render_as_string(hide_password=True)


class SqliteDialect:
    """One file, one writer at a time."""

    clock_offset_s: float | None = None

    def connect(self, url: URL) -> Engine:
        """Return an engine whose connections wait for each other instead of failing."""
        engine = create_engine(url, hide_parameters=True)
        event.listen(engine, "connect", self._configure)
        return engine

    def begin_read(self, session: Session) -> None:
        """Begin a transaction that sees one state."""
        session.connection().exec_driver_sql("BEGIN")

    def begin_write(self, session: Session) -> None:
        """Begin a transaction that writes, after the writers before it."""
        # Taking the write lock first makes two writers queue instead of failing half way.
        session.connection().exec_driver_sql("BEGIN IMMEDIATE")

    def begin_migration(self, connection: Connection) -> None:
        """Begin the transaction of a migration, on a connection that is thrown away after it."""
        # Alembic changes a table by making another and dropping the first: with foreign keys on,
        # that would take the rows of others along. It cannot be turned off in a transaction.
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        connection.exec_driver_sql(f"PRAGMA busy_timeout={MIGRATION_WAIT_S * 1000}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def check_migrated(self, connection: Connection) -> list[str]:
        """Return what a migration broke: tables with rows that point nowhere."""
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check")
        return sorted({f"{row[0]} -> {row[2]}" for row in broken})

    @staticmethod
    def _configure(connection: Any, _record: object) -> None:
        # Autocommit at the driver: the BEGIN above must be the only one.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        _keep_a_log(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")


def _keep_a_log(connection: Any) -> None:
    """Have a file's writers write to a log beside it, so that they do not stop its readers.

    The change of a new file needs it whole, and SQLite does not wait for that: of two processes
    that open it at once, one is told that it is locked.
    """
    give_up_at = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            is_busy = (error.sqlite_errorcode & 0xFF) == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() >= give_up_at:
                raise
            time.sleep(0.01)
        else:
            return


class PostgresDialect:
    """A server that many processes share.

    Args:
        settings: Pool and timeouts.

    Attributes:
        clock_offset_s: Server's time less this machine's ``time.monotonic``; measured with each
            new connection.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self.clock_offset_s: float | None = None

    def connect(self, url: URL) -> Engine:
        """Return an engine that asks a connection whether it lives before it is used."""
        given = url.query.get("options", "")
        engine = create_engine(
            url,
            isolation_level="READ COMMITTED",
            hide_parameters=True,
            pool_pre_ping=True,
            pool_size=self._settings.pool_size,
            max_overflow=0,
            pool_timeout=self._settings.lock_timeout_s,
            pool_recycle=1800,
            pool_use_lifo=True,
            connect_args={
                "connect_timeout": self._settings.connect_timeout_s,
                "application_name": "maas",
                "options": f"{given if isinstance(given, str) else ' '.join(given)} "
                + self._session_options(),
                # A server that vanished without a word is noticed after 25 s, not two hours.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 25_000,
            },
        )
        event.listen(engine, "connect", self._read_clock)
        return engine

    def _read_clock(self, connection: Any, _record: object) -> None:
        asked_at = time.monotonic()
        row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
        connection.rollback()
        self.clock_offset_s = row[0] - (asked_at + time.monotonic()) / 2

    def _session_options(self) -> str:
        lock_ms = round(self._settings.lock_timeout_s * 1000)
        options = {
            "statement_timeout": round(self._settings.statement_timeout_s * 1000),
            "lock_timeout": lock_ms,
            # A process that stands still in a transaction loses it before those who wait give up.
            "idle_in_transaction_session_timeout": lock_ms // 2,
            # The same, for a client whose machine is gone.
            "tcp_keepalives_idle": 10,
            "tcp_keepalives_interval": 5,
            "tcp_keepalives_count": 3,
        }
        return " ".join(f"-c {name}={value}" for name, value in options.items())

    def begin_read(self, session: Session) -> None:
        """Begin a transaction that sees one state."""
        session.connection(
            execution_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        )

    def begin_write(self, session: Session) -> None:
        """Begin a transaction that writes, after the writers before it."""
        session.connection().exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")

    def begin_migration(self, connection: Connection) -> None:
        """Begin the transaction of a migration: no writer is under way, and none begins."""
        for setting in (
            f"lock_timeout = '{MIGRATION_WAIT_S}s'",
            "statement_timeout = 0",
            "idle_in_transaction_session_timeout = 0",
        ):
            connection.exec_driver_sql(f"SET LOCAL {setting}")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")

    def check_migrated(self, connection: Connection) -> list[str]:  # noqa: ARG002 - as SQLite's
        """Return nothing: PostgreSQL checks foreign keys itself."""
        return []


Dialect = SqliteDialect | PostgresDialect


def dialect_of(url: URL, settings: StoreSettings) -> Dialect:
    """Return the dialect of a store's URL."""
    return SqliteDialect() if url.get_backend_name() == "sqlite" else PostgresDialect(settings)
