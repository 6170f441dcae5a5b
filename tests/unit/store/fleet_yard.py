"""A project with a fleet, and devices that do as they are told, for tests of the repositories."""

from dataclasses import dataclass, field

from maas.serving.fleet import FleetKeeper
from maas.store.edge_tables import BundleRow
from maas.store.enrolment import Applicant
from maas.store.fleet import Fleet, open_fleet
from maas.store.fleet_records import NewRollout
from maas.store.heartbeats import Beat, Orders, Outcome
from maas.store.keys import KeyRepository
from maas.store.pages import Window
from maas.store.rollout_rules import Stage
from maas.store.secrets import Sealing
from maas.store.state import ensure_project

ALL = Window(limit=100)
SEALING = Sealing(
    lambda text: f"sealed:{text[::-1]}", lambda text: text.removeprefix("sealed:")[::-1]
)


@dataclass
class Yard:
    """A project with a fleet."""

    database: object
    clock: object
    project_id: str
    fleet: Fleet
    keys: KeyRepository
    orders: dict[str, Orders] = field(default_factory=dict)

    def bundle(self, name: str) -> str:
        with self.database.write(bump_revision=False) as session:
            row = BundleRow(
                id=name,
                project_id=self.project_id,
                name=name,
                model_id="m",
                blob_key=f"bundles/{name}",
                size_bytes=7,
                manifest={},
                created_at=self.clock.now(),
            )
            session.add(row)
        return name

    def code(self, group: str = "default", lifetime_s: float = 3600.0) -> str:
        return self.fleet.enrolment.create(
            self.project_id, group=group, name=None, lifetime_s=lifetime_s, labels={}
        )[1]

    def device(self, group: str = "default") -> "Unit":
        made = self.fleet.enrolment.enrol(Applicant(self.code(group), "n" * 32))
        return Unit(self, made.device_id, made.key.split("-")[2])

    def devices(self, count: int) -> "list[Unit]":
        with self.database.together():
            return [self.device() for _ in range(count)]

    def rollout(self, bundle_id: str, *percents: float, **options):
        fields = {"max_failure_percent": 5.0, "min_reports": 1, **options}
        stages = tuple(Stage(percent) for percent in percents or (100,))
        return self.fleet.rollouts.create(
            self.project_id, NewRollout("stable", bundle_id, stages, **fields)
        )

    def seen(self, rollout):
        return self.fleet.rollouts.get(self.project_id, rollout.id)

    def seen_device(self, unit: "Unit"):
        return self.fleet.devices.get(self.project_id, unit.id)

    def told(self, unit: "Unit") -> list[str]:
        page = self.fleet.devices.events(self.project_id, unit.id, ALL)
        return [item.type for item in page.items]

    def step(self) -> None:
        FleetKeeper(self.fleet.rollouts, self.fleet.enrolment).step()


def open_yard(database, clock) -> Yard:
    return Yard(
        database=database,
        clock=clock,
        project_id=ensure_project(database, clock),
        fleet=open_fleet(database, clock, SEALING),
        keys=KeyRepository(database, clock),
    )


@dataclass
class Unit:
    """A device."""

    yard: Yard
    id: str
    key_id: str
    runs: str | None = None

    def beat_with(self, **fields) -> Beat:
        return Beat(key_id=self.key_id, bundle_id=self.runs, report={"state": "ok"}, **fields)

    def beat(self, **fields):
        (orders,) = self.yard.fleet.heartbeats.take([self.beat_with(**fields)])
        return orders

    def wants(self) -> str | None:
        wish = self.beat().wish
        return None if wish is None else wish.bundle_id

    def ends(self, bundle_id: str, attempt: int, *, is_success: bool) -> Orders:
        if is_success:
            self.runs = bundle_id
        return self.beat(outcome=Outcome(bundle_id, attempt, is_success, error="broken"))
