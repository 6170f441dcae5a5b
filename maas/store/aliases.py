"""Aliases: stable public names, each pointing at a model."""

from sqlalchemy import select

from maas.core.clock import Clock
from maas.core.errors import NotFound
from maas.store.database import Database
from maas.store.records import Alias
from maas.store.tables import AliasRow


class AliasRepository:
    """Reads and writes aliases."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def point(self, name: str, model_id: str) -> Alias:
        """Let a name stand for a model, whatever it stood for before."""
        with self._database.write() as session:
            session.merge(AliasRow(name=name, model_id=model_id, created_at=self._clock.now()))
        return Alias(name=name, model_id=model_id)

    def list(self) -> tuple[Alias, ...]:
        """Return all aliases by name."""
        with self._database.read() as session:
            rows = session.scalars(select(AliasRow).order_by(AliasRow.name))
            return tuple(Alias(row.name, row.model_id) for row in rows)

    def remove(self, name: str) -> None:
        """Forget a name.

        Raises:
            NotFound: There is no such alias.
        """
        with self._database.write() as session:
            row = session.get(AliasRow, name)
            if row is None:
                raise NotFound(f"no alias is called {name!r}")
            session.delete(row)
