"""All repositories of the fleet over one database."""

from dataclasses import dataclass

from maas.core.clock import Clock
from maas.store.database import Database
from maas.store.device_groups import ChannelRepository, GroupRepository
from maas.store.devices import DeviceRepository
from maas.store.enrolment import EnrolmentRepository
from maas.store.heartbeats import HeartbeatRepository
from maas.store.rollouts import RolloutRepository
from maas.store.secrets import Sealing
from maas.store.signing_keys import SigningKeyRepository


@dataclass(frozen=True)
class Fleet:
    """The devices of all projects, what decides about them, and the key they trust."""

    groups: GroupRepository
    channels: ChannelRepository
    devices: DeviceRepository
    enrolment: EnrolmentRepository
    heartbeats: HeartbeatRepository
    rollouts: RolloutRepository
    signing_keys: SigningKeyRepository


def open_fleet(database: Database, clock: Clock, sealing: Sealing) -> Fleet:
    """Return the repositories over a database.

    Args:
        database: The store.
        clock: For online, expired, over.
        sealing: Of keys that may be asked for again, and of the one that signs bundles.
    """
    return Fleet(
        groups=GroupRepository(database, clock),
        channels=ChannelRepository(database, clock),
        devices=DeviceRepository(database, clock),
        enrolment=EnrolmentRepository(database, clock, sealing),
        heartbeats=HeartbeatRepository(database, clock),
        rollouts=RolloutRepository(database, clock),
        signing_keys=SigningKeyRepository(database, clock, sealing),
    )
