"""Adapters that no model needs any more: whose bytes may go, so that nobody is left without."""

from collections.abc import Collection

from sqlalchemy import or_, select, update

from maas.core.clock import Clock
from maas.store.adapters import REMOVAL_S, TunedState
from maas.store.database import Database
from maas.store.finetune_tables import AdapterRow, TunedModelRow

# An adapter is written down before its model is, and engines let go of it a little later.
KEPT_UNUSED_S = 3600.0
KEPT_DELETED_S = 60.0


class AdapterRemoval:
    """Says which adapters may go, and that they went."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def claim(self, limit: int) -> tuple[str, ...]:
        """Give up adapters that no model has, or had a moment ago; return their ids.

        Whoever brings one again meanwhile is told to wait. One whose remover died is returned
        again.
        """
        now, row = self._clock.now(), AdapterRow
        needed = select(TunedModelRow.adapter_id).where(
            TunedModelRow.adapter_id.is_not(None),
            TunedModelRow.state != TunedState.REFUSED.value,
            or_(
                TunedModelRow.deleted_at.is_(None),
                TunedModelRow.deleted_at > now - KEPT_DELETED_S,
            ),
        )
        with self._database.write(bump_revision=False) as session:
            found = session.scalars(
                select(row)
                .where(
                    row.size_bytes > 0,
                    row.created_at <= now - KEPT_UNUSED_S,
                    or_(row.removed_at.is_(None), row.removed_at <= now - REMOVAL_S),
                    row.id.not_in(needed),
                )
                .limit(limit)
            ).all()
            for adapter in found:
                adapter.removed_at = now
            return tuple(adapter.id for adapter in found)

    def forget(self, adapter_id: str) -> None:
        """Write down that the bytes of an adapter that was claimed are gone."""
        with self._database.write(bump_revision=False) as session:
            session.execute(
                update(AdapterRow)
                .where(AdapterRow.id == adapter_id, AdapterRow.removed_at.is_not(None))
                .values(size_bytes=0)
            )


def known_weights(database: Database, keys: Collection[str]) -> set[str]:
    """Return which of these blob folders of whole weights some model has, or had."""
    with database.read() as session:
        found = select(TunedModelRow.weights_key).where(TunedModelRow.weights_key.in_([*keys]))
        return {key for key in session.scalars(found) if key is not None}
