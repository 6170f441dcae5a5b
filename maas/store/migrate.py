"""Bringing the tables to this version's shape: once, whole or not at all, with a copy before.

The one transaction of all migrations runs under the lock of all writers, so of two processes
that start at once the second finds the work done, and a process killed half way leaves the
store as it was.
"""

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine

from maas.core.errors import Conflict, HostError, InvalidRequest
from maas.store.backups import Backups
from maas.store.dialects import Dialect
from maas.store.failures import translated

log = logging.getLogger(__name__)

MIGRATIONS_DIR = Path(__file__).parent / "migrations"


class Migrator:
    """Migrates one store.

    Args:
        engine: Of the store.
        dialect: How its migration begins.
        name: The store's URL as it may be shown.
        backups: Where a SQLite store is copied to before it is changed; none makes no copy.
        migrations_dir: Alembic's folder.
    """

    def __init__(
        self,
        engine: Engine,
        dialect: Dialect,
        *,
        name: str,
        backups: Backups | None = None,
        migrations_dir: Path = MIGRATIONS_DIR,
    ) -> None:
        self._engine = engine
        self._dialect = dialect
        self._name = name
        self._backups = backups
        self._config = Config()
        # A percent sign begins a placeholder in Alembic's configuration.
        self._config.set_main_option("script_location", str(migrations_dir).replace("%", "%%"))
        self._scripts = ScriptDirectory.from_config(self._config)

    def run(self, target: str = "head") -> None:
        """Migrate, unless there is nothing to do.

        Args:
            target: Revision to stop at; the newest by default.

        Raises:
            HostError: The store is of a newer version than this one, or a migration failed.
        """
        wanted = self._scripts.get_current_head() if target == "head" else target
        try:
            with translated(self._name):
                self._run(wanted)
        except (Conflict, InvalidRequest) as error:
            # Of its rows and not of what a caller asked for.
            raise HostError(
                f"upgrading the store {self._name} failed, nothing was changed: {error.message}"
            ) from error

    def _run(self, wanted: str | None) -> None:
        # Almost always true, and then no writer has to wait for us.
        with self._engine.connect() as connection:
            if self._current(connection) == wanted:
                return
        with self._engine.connect() as connection:
            # Its settings are not those of the others: it must not go back to them.
            connection.detach()
            self._dialect.begin_migration(connection)
            current = self._current(connection)
            if current != wanted:
                self._upgrade(connection, current, str(wanted))
            connection.commit()

    def _current(self, connection: Connection) -> str | None:
        """Return the store's revision; none where it has no tables yet.

        Raises:
            HostError: It is of a version that this one does not know.
        """
        revision = MigrationContext.configure(connection).get_current_revision()
        known = {script.revision for script in self._scripts.walk_revisions()}
        if revision is None or revision in known:
            return revision
        head = self._scripts.get_current_head()
        raise HostError(
            f"the store {self._name} was made by a newer version of this platform: its schema is "
            f"{revision}, this version knows up to {head}; install the newer version, or use a "
            "copy of the store from before its upgrade"
        )

    def _upgrade(self, connection: Connection, current: str | None, target: str) -> None:
        copy = None if current is None else self._keep_copy(current, target)
        self._config.attributes["connection"] = connection
        try:
            self._apply(connection, target)
        except BaseException:
            # Nothing was changed, so the copy is one of what is still there: it would only push
            # an older one out.
            if copy is not None:
                copy.unlink()
            raise

    def _keep_copy(self, current: str, target: str) -> Path | None:
        file = self._engine.url.database
        if self._engine.dialect.name != "sqlite":
            log.warning(
                "upgrading the store %s from schema %s to %s; no copy is made of a PostgreSQL "
                "store: to have one, run this before an upgrade: pg_dump --format=custom "
                "--file=maas-%s.dump '%s'",
                self._name,
                current,
                target,
                current,
                self._name.replace("+psycopg", "").replace(":***", ""),
            )
            return None
        if self._backups is None or not file:
            return None
        copy = self._backups.make(Path(file), current)
        log.warning("upgrading the store from schema %s to %s; a copy: %s", current, target, copy)
        return copy

    def _apply(self, connection: Connection, target: str) -> None:
        try:
            command.upgrade(self._config, target)
        except CommandError as error:
            raise HostError(f"the store {self._name} cannot be upgraded: {error}") from error
        broken = self._dialect.check_migrated(connection)
        if broken:
            raise HostError(
                f"upgrading the store {self._name} would leave rows that point nowhere "
                f"({', '.join(broken)}); nothing was changed"
            )
