"""The controller's part in the fleet: its keeper, put together."""

from maas.bootstrap.store import Store
from maas.core.settings import Settings
from maas.serving.fleet import FleetKeeper
from maas.store.fleet import Fleet, open_fleet
from maas.store.secrets import Sealing, SecretBox


def fleet_of(settings: Settings, store: Store) -> Fleet:
    """Return the fleet's repositories over a store."""
    secrets = SecretBox(settings.home)
    return open_fleet(store.database, store.clock, Sealing(secrets.seal, secrets.open))


def make_fleet_keeper(settings: Settings, store: Store) -> FleetKeeper:
    """Put together what moves rollouts on."""
    fleet = fleet_of(settings, store)
    return FleetKeeper(fleet.rollouts, fleet.enrolment)
