"""What a device was told to run, and in which attempt of which rollout: what it may tell of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maas.store.rollout_rules import Wish

# Of the bundles that a device was told to run, those it may still tell of.
MAX_TOLD = 8
# In no id.
_MARK = "@"


@dataclass(frozen=True)
class Told:
    """Where a device was told a bundle last.

    Attributes:
        attempt: The highest; 0 where it was told outside rollouts only.
        rollout_id: Of that attempt.
    """

    attempt: int = 0
    rollout_id: str | None = None


def read_told(entries: Sequence[str]) -> dict[str, Told]:
    """Return what is kept, by bundle, newest last."""
    told: dict[str, Told] = {}
    for entry in entries:
        bundle_id, *place = entry.split(_MARK)
        told[bundle_id] = Told(int(place[0]), place[1]) if place else Told()
    return told


def with_wish(told: Mapping[str, Told], wish: Wish) -> dict[str, Told]:
    """Return what a device was told once it hears this too."""
    rest = {bundle_id: item for bundle_id, item in told.items() if bundle_id != wish.bundle_id}
    # That it is bound to the bundle now takes no attempt back.
    known = told.get(wish.bundle_id, Told())
    rest[wish.bundle_id] = Told(wish.attempt, wish.rollout_id) if wish.attempt else known
    return dict(list(rest.items())[-MAX_TOLD:])


def kept(told: Mapping[str, Told]) -> list[str]:
    """Return it as it is kept."""
    return [
        _MARK.join((bundle_id, str(item.attempt), item.rollout_id))
        if item.rollout_id
        else bundle_id
        for bundle_id, item in told.items()
    ]
