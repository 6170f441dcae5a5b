"""The fleet's repositories, on both databases: codes, keys, heartbeats, rollouts."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from sqlalchemy import event, select

from maas.core.errors import AuthenticationFailed, Conflict, InvalidEnrolmentCode, NotFound
from maas.serving.fleet import FleetKeeper
from maas.store.bundles import BundleRepository
from maas.store.device_events import MAX_EVENTS
from maas.store.device_groups import NewGroup
from maas.store.devices import DeviceFilter
from maas.store.edge_tables import BundleRow
from maas.store.enrolment import KEPT_S, REPLAYED_S, Applicant
from maas.store.fleet import Fleet, open_fleet
from maas.store.fleet_records import NewRollout
from maas.store.fleet_tables import DeviceRolloutRow, DeviceUpdateRow
from maas.store.heartbeats import Beat, DeviceError, Orders, Outcome
from maas.store.keys import KeyRepository
from maas.store.pages import Window
from maas.store.roles import DEVICE_SCOPE, FALLBACK_SCOPE
from maas.store.rollout_rules import RolloutStatus, Stage, is_in
from maas.store.secrets import Sealing
from maas.store.state import StateReader, ensure_project
from maas.store.tenancy import open_tenancy
from maas.store.webhook_tables import DeliveryRow
from maas.store.webhooks import WebhookRepository

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


@pytest.fixture
def yard(database, clock) -> Yard:
    return Yard(
        database=database,
        clock=clock,
        project_id=ensure_project(database, clock),
        fleet=open_fleet(database, clock, SEALING),
        keys=KeyRepository(database, clock),
    )


def test_same_code_and_nonce_are_the_same_device_for_a_day(yard):
    code = yard.code()
    first = yard.fleet.enrolment.enrol(Applicant(code, "n" * 32))
    yard.clock.advance(REPLAYED_S - 1)
    assert yard.fleet.enrolment.enrol(Applicant(code, "n" * 32)) == first
    with pytest.raises(InvalidEnrolmentCode):
        yard.fleet.enrolment.enrol(Applicant(code, "m" * 32))
    yard.clock.advance(2)
    with pytest.raises(InvalidEnrolmentCode):
        yard.fleet.enrolment.enrol(Applicant(code, "n" * 32))
    assert len(yard.fleet.devices.list(yard.project_id, DeviceFilter(), ALL).items) == 1


def test_sealed_key_is_forgotten_when_it_cannot_be_asked_for(yard):
    used, unused = yard.code(), yard.code()
    yard.fleet.enrolment.enrol(Applicant(used, "n" * 32))
    assert yard.fleet.enrolment.forget() == 0
    yard.clock.advance(REPLAYED_S)
    assert yard.fleet.enrolment.forget() == 1
    yard.clock.advance(KEPT_S + 3600)
    assert yard.fleet.enrolment.forget() == 1
    (left,) = yard.fleet.enrolment.list(yard.project_id, ALL).items
    assert left.used_at is not None
    with pytest.raises(InvalidEnrolmentCode):
        yard.fleet.enrolment.enrol(Applicant(unused, "n" * 32))


@pytest.mark.parametrize("code", ["", "0" * 27, "0" * 29, "u" * 28, "\x00" * 28, "é" * 28])
def test_what_cannot_be_a_code_is_refused_like_one_that_is_unknown(yard, code):
    with pytest.raises(InvalidEnrolmentCode) as refused:
        yard.fleet.enrolment.enrol(Applicant(code, "n" * 32))
    with pytest.raises(InvalidEnrolmentCode) as unknown:
        yard.fleet.enrolment.enrol(Applicant("0" * 28, "n" * 32))
    assert refused.value.message == unknown.value.message


def test_expired_and_deleted_codes_make_no_device(yard):
    late, gone = yard.code(lifetime_s=60.0), yard.code()
    for code in yard.fleet.enrolment.list(yard.project_id, ALL).items:
        if code.expires_at > yard.clock.now() + 60:
            yard.fleet.enrolment.delete(yard.project_id, code.id)
    yard.clock.advance(60)
    for code in (late, gone):
        with pytest.raises(InvalidEnrolmentCode):
            yard.fleet.enrolment.enrol(Applicant(code, "n" * 32))


def test_one_of_many_threads_is_enrolled_by_a_code(yard):
    code = yard.code()
    gate = threading.Barrier(8)

    def enrol(number: int) -> bool:
        gate.wait()
        try:
            yard.fleet.enrolment.enrol(Applicant(code, f"{number}" * 32))
        except InvalidEnrolmentCode:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(enrol, range(8))) == 1


def test_key_of_a_device_is_narrow_and_follows_its_group(yard):
    yard.fleet.groups.create(yard.project_id, NewGroup("shops", fallback_model="m"), {})
    plain, helped = yard.device(), yard.device("shops")
    assert yard.keys.get(plain.key_id).scopes == (DEVICE_SCOPE,)
    key = yard.keys.get(helped.key_id)
    assert (key.scopes, key.models) == ((DEVICE_SCOPE, FALLBACK_SCOPE), ("m",))
    assert "/v1/chat/completions" in key.endpoints
    state = StateReader(yard.database, yard.clock)
    before = state.revision()
    yard.fleet.groups.modify(yard.project_id, "shops", {"fallback_model": "other"})
    assert yard.keys.get(helped.key_id).models == ("other",)
    assert state.revision() > before, "gateways read it anew"
    yard.fleet.devices.modify(yard.project_id, plain.id, {"group_name": "shops"})
    assert yard.keys.get(plain.key_id).models == ("other",)
    yard.fleet.groups.modify(yard.project_id, "shops", {"fallback_model": None})
    for unit in (plain, helped):
        key = yard.keys.get(unit.key_id)
        assert (key.scopes, key.models) == ((DEVICE_SCOPE,), ())
        assert "/v1/chat/completions" not in key.endpoints


def test_key_of_a_device_is_neither_listed_nor_rotated(yard):
    unit = yard.device()
    listed = yard.keys.read_page(yard.project_id, ALL).items
    assert unit.key_id not in {key.id for key in listed}
    with pytest.raises(Conflict, match="enrol the device anew"):
        yard.keys.rotate(unit.key_id, overlap_s=0)


def test_heartbeat_is_no_change_of_the_control_plane(yard):
    unit = yard.device()
    audit = open_tenancy(yard.database, yard.clock).audit
    state = StateReader(yard.database, yard.clock)
    before = (state.revision(), len(list(audit.export())))
    unit.beat(speeds={"decode_tok_s": 40.0})
    assert (state.revision(), len(list(audit.export()))) == before
    assert yard.fleet.devices.summary(yard.project_id).medians["decode_tok_s"] == (40.0, 1)


def test_device_is_online_for_three_heartbeats(yard):
    unit = yard.device()
    assert not yard.seen_device(unit).is_online
    unit.beat()
    yard.clock.advance(180)
    assert yard.seen_device(unit).is_online
    yard.clock.advance(1)
    assert not yard.seen_device(unit).is_online


def test_retired_device_is_refused_and_the_others_of_its_batch_are_not(yard):
    gone, here = yard.device(), yard.device()
    yard.fleet.devices.retire(yard.project_id, gone.id)
    yard.fleet.devices.retire(yard.project_id, gone.id)
    assert yard.keys.get(gone.key_id).revoked_at is not None
    first, second = yard.fleet.heartbeats.take([gone.beat_with(), here.beat_with()])
    assert isinstance(first, AuthenticationFailed)
    assert isinstance(second, Orders)
    with pytest.raises(Conflict):
        yard.fleet.devices.modify(yard.project_id, gone.id, {"name": "x"})
    assert yard.told(gone) == ["enrolled", "retired"]


def test_pins_and_channels_decide(yard):
    one, two, three = (yard.bundle(name) for name in ("one", "two", "three"))
    unit = yard.device()
    assert unit.wants() is None
    yard.fleet.channels.set(yard.project_id, "stable", one)
    assert unit.wants() == one
    yard.fleet.channels.set(yard.project_id, "beta", two)
    yard.fleet.devices.modify(yard.project_id, unit.id, {"channel": "beta"})
    assert unit.wants() == two
    yard.fleet.groups.modify(yard.project_id, "default", {"bundle_id": three})
    assert unit.wants() == three
    yard.fleet.devices.modify(yard.project_id, unit.id, {"bundle_id": one})
    assert unit.wants() == one
    yard.fleet.devices.modify(yard.project_id, unit.id, {"bundle_id": None, "channel": None})
    yard.fleet.groups.modify(yard.project_id, "default", {"bundle_id": None})
    assert unit.wants() == one
    assert yard.told(unit) == ["enrolled", "assigned", "assigned", "assigned"]
    found = yard.fleet.devices.list(yard.project_id, DeviceFilter(channel="stable"), ALL)
    assert [item.id for item in found.items] == [unit.id]


def test_device_reads_what_it_should_run_or_was_told_to_run(yard):
    one, two, other = (yard.bundle(name) for name in ("one", "two", "other"))
    unit = yard.device()
    devices = yard.fleet.devices
    yard.fleet.channels.set(yard.project_id, "stable", one)
    assert devices.may_read(unit.key_id, one)
    unit.beat()
    unit.runs = one
    unit.beat()
    yard.fleet.channels.set(yard.project_id, "stable", two)
    assert devices.may_read(unit.key_id, one), "it runs it"
    assert devices.may_read(unit.key_id, two)
    assert not devices.may_read(unit.key_id, other)
    unit.runs = other
    unit.beat()
    assert not devices.may_read(unit.key_id, other), "saying so opens nothing"
    assert not devices.may_read(unit.key_id, one)
    yard.fleet.devices.retire(yard.project_id, unit.id)
    assert not devices.may_read(unit.key_id, two)
    assert not devices.may_read("nobody", two)


def test_bundle_that_devices_should_run_is_not_deleted(yard):
    bundles, fleet, unit = BundleRepository(yard.database, yard.clock), yard.fleet, yard.device()
    fleet.channels.set(yard.project_id, "stable", yard.bundle("by-channel"))
    fleet.groups.modify(yard.project_id, "default", {"bundle_id": yard.bundle("by-group")})
    fleet.devices.modify(yard.project_id, unit.id, {"bundle_id": yard.bundle("by-device")})
    yard.rollout(yard.bundle("by-rollout"))
    for name in ("by-channel", "by-group", "by-device", "by-rollout"):
        with pytest.raises(Conflict, match="should run"):
            bundles.delete(yard.project_id, name)
    fleet.devices.retire(yard.project_id, unit.id)
    bundles.delete(yard.project_id, "by-device")
    with pytest.raises(NotFound):
        fleet.channels.set(yard.project_id, "beta", "by-device")


def test_group_with_devices_or_codes_is_not_deleted(yard):
    groups = yard.fleet.groups
    groups.create(yard.project_id, NewGroup("shops"), {})
    with pytest.raises(Conflict):
        groups.create(yard.project_id, NewGroup("shops"), {})
    unit = yard.device("shops")
    code = yard.code("shops")
    for way_out in (
        lambda: yard.fleet.devices.retire(yard.project_id, unit.id),
        lambda: yard.fleet.enrolment.enrol(Applicant(code, "n" * 32)),
    ):
        with pytest.raises(Conflict):
            groups.delete(yard.project_id, "shops")
        way_out()
    (last,) = yard.fleet.devices.list(yard.project_id, DeviceFilter(is_retired=False), ALL).items
    yard.fleet.devices.retire(yard.project_id, last.id)
    groups.delete(yard.project_id, "shops")
    with pytest.raises(NotFound):
        yard.code("shops")
    assert yard.seen_device(unit).group == "shops", "who is retired is still shown"


@pytest.mark.parametrize("archived", ["project", "organization"])
def test_code_of_an_archived_project_makes_no_device(yard, archived):
    tenancy = open_tenancy(yard.database, yard.clock)
    organization = tenancy.organizations.create("shops")
    yard.project_id = tenancy.projects.create(organization.id, "kiosks").id
    used, unused = yard.code(), yard.code()
    yard.fleet.enrolment.enrol(Applicant(used, "n" * 32))
    if archived == "project":
        tenancy.projects.archive(yard.project_id)
    else:
        tenancy.organizations.archive(organization.id)
    for code in (used, unused):
        with pytest.raises(InvalidEnrolmentCode) as refused:
            yard.fleet.enrolment.enrol(Applicant(code, "n" * 32))
        with pytest.raises(InvalidEnrolmentCode) as unknown:
            yard.fleet.enrolment.enrol(Applicant("0" * 28, "n" * 32))
        assert refused.value.message == unknown.value.message


def test_saying_that_it_runs_a_halted_bundle_opens_nothing(yard):
    old, new = yard.bundle("old"), yard.bundle("new")
    yard.fleet.channels.set(yard.project_id, "stable", old)
    failing, claiming = yard.devices(2)
    yard.rollout(new)
    failing.wants()
    failing.ends(new, 1, is_success=False)
    claiming.runs = new
    for _ in range(2):
        assert claiming.wants() == old
        assert yard.seen_device(claiming).wish.bundle_id == old
        assert not yard.fleet.devices.may_read(claiming.key_id, new)


def test_outcome_of_an_attempt_that_a_device_was_not_told_hides_no_failure(yard):
    new = yard.bundle("new")
    unit = yard.device()
    rollout = yard.rollout(new)
    yard.fleet.devices.modify(yard.project_id, unit.id, {"bundle_id": new})
    assert unit.wants() == new
    unit.ends(new, rollout.attempt, is_success=True)
    assert "update_succeeded" not in yard.told(unit), "it was told no attempt"
    yard.fleet.devices.modify(yard.project_id, unit.id, {"bundle_id": None})
    unit.runs = None
    assert unit.beat().wish.attempt == rollout.attempt
    unit.ends(new, rollout.attempt, is_success=False)
    assert yard.seen(rollout).status is RolloutStatus.HALTED


def test_success_while_bound_to_a_bundle_hides_no_failure_in_its_rollout(yard):
    new = yard.bundle("new")
    unit = yard.device()
    rollout = yard.rollout(new)
    assert unit.wants() == new
    yard.fleet.devices.modify(yard.project_id, unit.id, {"bundle_id": new})
    unit.ends(new, 1, is_success=True)
    assert yard.told(unit)[-1] == "update_succeeded", "it was told, though it does not count"
    yard.fleet.devices.modify(yard.project_id, unit.id, {"bundle_id": None})
    unit.runs = None
    unit.ends(new, 1, is_success=False)
    halted = yard.seen(rollout)
    assert (halted.status, halted.counts.failed) == (RolloutStatus.HALTED, 1)
    assert "1 of 1" in halted.reason


def test_rollout_goes_through_its_stages_to_the_channel(yard):
    old, new = yard.bundle("old"), yard.bundle("new")
    yard.fleet.channels.set(yard.project_id, "stable", old)
    units = yard.devices(20)
    rollout = yard.rollout(new, 30, 100)
    first = {unit.id for unit in units if is_in(rollout.id, unit.id, 30)}
    assert 0 < len(first) < 20, "the draw of this test is a usual one"
    assert {unit.id for unit in units if unit.wants() == new} == first
    yard.step()
    assert yard.seen(rollout).stage == 0, "nobody has reported"
    for unit in units:
        if unit.id in first:
            unit.ends(new, rollout.attempt, is_success=True)
    counts = yard.seen(rollout).counts
    assert (counts.targeted, counts.eligible, counts.succeeded) == (20, len(first), len(first))
    yard.step()
    assert yard.seen(rollout).stage == 1
    for unit in units:
        unit.wants()
        unit.ends(new, rollout.attempt, is_success=True)
    yard.step()
    yard.step()
    done = yard.seen(rollout)
    assert (done.status, done.counts.succeeded) == (RolloutStatus.COMPLETED, 20)
    assert yard.fleet.channels.get(yard.project_id, "stable").bundle_id == new
    orders = units[0].beat()
    assert (orders.wish.bundle_id, orders.wish.attempt, orders.wish.rollout_id) == (new, 0, None)


def test_stage_lasts_as_long_as_it_should_and_waits_for_who_is_online(yard):
    new = yard.bundle("new")
    online, away = yard.devices(2)
    stages = (Stage(100, 600.0),)
    rollout = yard.fleet.rollouts.create(
        yard.project_id, NewRollout("stable", new, stages, max_failure_percent=5.0, min_reports=1)
    )
    away.beat()
    yard.clock.advance(600)
    online.beat()
    yard.step()
    assert yard.seen(rollout).status is RolloutStatus.RUNNING
    online.ends(new, rollout.attempt, is_success=True)
    yard.step()
    assert yard.seen(rollout).status is RolloutStatus.COMPLETED


def test_failure_halts_within_its_own_transaction_and_nobody_after_it_is_told(yard):
    old, new = yard.bundle("old"), yard.bundle("new")
    yard.fleet.channels.set(yard.project_id, "stable", old)
    units = yard.devices(4)
    rollout = yard.rollout(new)
    failing, running, before, after = units
    assert {unit.wants() for unit in (failing, running)} == {new}
    running.runs = new
    hears = yard.fleet.heartbeats.take(
        [
            before.beat_with(),
            failing.beat_with(outcome=Outcome(new, rollout.attempt, False, error="broken")),
            running.beat_with(),
            after.beat_with(),
        ]
    )
    assert [orders.wish.bundle_id for orders in hears] == [new, old, new, old]
    halted = yard.seen(rollout)
    assert halted.status is RolloutStatus.HALTED
    assert "1 of 1" in halted.reason
    assert before.wants() == old, "it was told, but does not run it yet"
    assert yard.told(failing) == ["enrolled", "update_failed"]
    yard.step()
    assert yard.seen(rollout).status is RolloutStatus.HALTED


def test_outcome_counts_once_however_often_it_is_told(yard):
    new = yard.bundle("new")
    units = yard.devices(3)
    rollout = yard.rollout(new, max_failure_percent=100.0)
    for unit in units:
        unit.wants()
    for _ in range(3):
        units[0].ends(new, rollout.attempt, is_success=False)
        units[1].ends(new, rollout.attempt, is_success=True)
    # Told too late to change anything.
    units[0].ends(new, rollout.attempt, is_success=True)
    with yard.database.read() as session:
        assert len(session.scalars(select(DeviceUpdateRow)).all()) == 2
    assert yard.told(units[0]) == ["enrolled", "update_failed"]


def test_bundle_that_fails_after_it_had_succeeded_counts_as_failed(yard):
    new = yard.bundle("new")
    unit, other = yard.devices(2)
    rollout = yard.rollout(new, max_failure_percent=50.0)
    unit.wants(), other.wants()
    other.ends(new, 1, is_success=True)
    unit.ends(new, 1, is_success=True)
    for _ in range(2):
        unit.runs = None
        unit.ends(new, 1, is_success=False)
    counts = yard.seen(rollout).counts
    assert (counts.succeeded, counts.failed) == (1, 1)
    assert yard.seen(rollout).status is RolloutStatus.RUNNING, "one of two is not over half"
    other.runs = None
    other.ends(new, 1, is_success=False)
    assert yard.seen(rollout).status is RolloutStatus.HALTED
    assert yard.told(unit) == ["enrolled", "update_succeeded", "update_failed"]


def test_failure_after_success_is_told_of_its_own_rollout(yard):
    old, new = yard.bundle("old"), yard.bundle("new")
    unit = yard.device()
    yard.rollout(old)
    unit.wants()
    unit.ends(old, 1, is_success=True)
    yard.step()
    other = yard.rollout(new, max_failure_percent=100.0)
    unit.wants()
    unit.ends(old, 1, is_success=False)
    events = yard.fleet.devices.events(yard.project_id, unit.id, ALL).items
    (failed,) = [item for item in events if item.type == "update_failed"]
    assert failed.data["rollout_id"] is None
    assert yard.seen(other).counts.failed == 0


def test_outcomes_that_nobody_asked_for_do_not_count(yard):
    old, new = yard.bundle("old"), yard.bundle("new")
    yard.fleet.channels.set(yard.project_id, "stable", old)
    outsider, member = yard.devices(2)
    yard.fleet.devices.modify(yard.project_id, outsider.id, {"bundle_id": old})
    rollout = yard.rollout(new)
    outsider.ends(new, rollout.attempt, is_success=False)
    member.ends(new, rollout.attempt, is_success=False)
    assert yard.seen(rollout).status is RolloutStatus.RUNNING, "neither was told to run it"
    member.wants()
    member.ends(new, rollout.attempt + 1, is_success=False)
    member.ends("nothing", 0, is_success=False)
    assert yard.seen(rollout).status is RolloutStatus.RUNNING
    assert yard.told(member) == ["enrolled"]
    member.ends(new, rollout.attempt, is_success=False)
    assert yard.seen(rollout).status is RolloutStatus.HALTED


def test_resumed_rollout_forgets_failures_and_goes_on(yard):
    new = yard.bundle("new")
    good, bad = yard.devices(2)
    rollout = yard.rollout(new)
    good.wants(), bad.wants()
    bad.ends(new, 1, is_success=False)
    good.ends(new, 1, is_success=True)
    resumed = yard.fleet.rollouts.resume(yard.project_id, rollout.id)
    assert (resumed.status, resumed.attempt, resumed.reason) == (RolloutStatus.RUNNING, 2, None)
    assert (resumed.counts.succeeded, resumed.counts.failed) == (1, 0)
    wish = bad.beat().wish
    assert (wish.bundle_id, wish.attempt) == (new, 2)
    bad.ends(new, 1, is_success=False)
    assert yard.seen(rollout).status is RolloutStatus.RUNNING, "an old failure changes nothing"
    bad.ends(new, 2, is_success=True)
    yard.step()
    assert yard.seen(rollout).status is RolloutStatus.COMPLETED


def test_resumed_rollout_shares_its_attempt_with_no_other_of_the_bundle(yard):
    new, fleet = yard.bundle("new"), yard.fleet
    first = yard.rollout(new)
    stages = (Stage(100),)
    second = fleet.rollouts.create(
        yard.project_id, NewRollout("beta", new, stages, max_failure_percent=5.0, min_reports=1)
    )
    fleet.rollouts.pause(yard.project_id, first.id)
    resumed = fleet.rollouts.resume(yard.project_id, first.id)
    assert (first.attempt, second.attempt, resumed.attempt) == (1, 2, 3)


def test_only_failures_of_this_attempt_count(yard):
    new = yard.bundle("new")
    first, late, good, bad = units = yard.devices(4)
    rollout = yard.rollout(new, max_failure_percent=50.0)
    for unit in units:
        unit.wants()
    first.ends(new, 1, is_success=False)
    assert yard.fleet.rollouts.resume(yard.project_id, rollout.id).attempt == 2
    late.ends(new, 1, is_success=False)
    assert yard.seen(rollout).status is RolloutStatus.RUNNING, "it tells of the first attempt"
    good.wants()
    good.ends(new, 2, is_success=True)
    bad.wants()
    bad.ends(new, 2, is_success=False)
    assert yard.seen(rollout).status is RolloutStatus.RUNNING, "one of two is not over half"
    first.wants()
    first.ends(new, 2, is_success=False)
    assert yard.seen(rollout).status is RolloutStatus.HALTED


@pytest.mark.parametrize("min_s", [0.0, 3600.0])
def test_stage_whose_devices_failed_halts_however_many_reports_were_wanted(yard, min_s):
    old, new = yard.bundle("old"), yard.bundle("new")
    yard.fleet.channels.set(yard.project_id, "stable", old)
    units = yard.devices(4)
    stages = (Stage(100, min_s),)
    rollout = yard.fleet.rollouts.create(
        yard.project_id, NewRollout("stable", new, stages, max_failure_percent=5.0, min_reports=10)
    )
    for unit in units:
        assert unit.wants() == new
    for unit in units[:3]:
        unit.ends(new, 1, is_success=False)
    yard.step()
    assert yard.seen(rollout).status is RolloutStatus.RUNNING, "one more report may come"
    units[3].ends(new, 1, is_success=False)
    assert yard.seen(rollout).status is RolloutStatus.RUNNING
    yard.step()
    halted = yard.seen(rollout)
    assert (halted.status, halted.counts.failed) == (RolloutStatus.HALTED, 4)
    assert "4 of 4" in halted.reason
    assert {unit.wants() for unit in units} == {old}


def test_failures_within_the_limit_let_a_rollout_complete(yard):
    new = yard.bundle("new")
    good, bad = yard.devices(2)
    rollout = yard.rollout(new, max_failure_percent=50.0, min_reports=10)
    good.wants(), bad.wants()
    bad.ends(new, 1, is_success=False)
    yard.step()
    assert yard.seen(rollout).status is RolloutStatus.RUNNING
    good.ends(new, 1, is_success=True)
    yard.step()
    assert yard.seen(rollout).status is RolloutStatus.COMPLETED


def test_paused_and_cancelled(yard):
    old, new = yard.bundle("old"), yard.bundle("new")
    yard.fleet.channels.set(yard.project_id, "stable", old)
    taken, waiting = yard.devices(2)
    rollout = yard.rollout(new)
    taken.wants()
    taken.ends(new, 1, is_success=True)
    rollouts = yard.fleet.rollouts
    for _ in range(2):
        assert rollouts.pause(yard.project_id, rollout.id).status is RolloutStatus.PAUSED
    assert (taken.wants(), waiting.wants()) == (new, old)
    yard.step()
    for _ in range(2):
        assert rollouts.cancel(yard.project_id, rollout.id).status is RolloutStatus.CANCELLED
    assert (taken.wants(), waiting.wants()) == (old, old)
    for change in (rollouts.pause, rollouts.resume):
        with pytest.raises(Conflict):
            change(yard.project_id, rollout.id)
    again = yard.rollout(new)
    assert again.attempt == 2, "what failed in the first tries again in the second"


def test_channel_has_one_unfinished_rollout(yard):
    one, two = yard.bundle("one"), yard.bundle("two")
    rollout = yard.rollout(one)
    with pytest.raises(Conflict, match="cancel it first"):
        yard.rollout(two)
    with pytest.raises(Conflict, match="cancel it first"):
        yard.fleet.channels.set(yard.project_id, "stable", two)
    yard.fleet.rollouts.cancel(yard.project_id, rollout.id)
    yard.fleet.channels.set(yard.project_id, "stable", two)
    with pytest.raises(Conflict, match="already"):
        yard.rollout(two)


def test_two_controllers_that_advance_at_once_move_one_stage(yard):
    stages = (Stage(1), Stage(2, 3600.0), Stage(100, 3600.0))
    new = NewRollout("stable", yard.bundle("new"), stages, max_failure_percent=5.0, min_reports=1)
    rollout = yard.fleet.rollouts.create(yard.project_id, new)
    with ThreadPoolExecutor(2) as pool:
        with yard.database.write(bump_revision=False):
            # Both have looked at it before either may write.
            asked = [pool.submit(yard.fleet.rollouts.advance, rollout.id) for _ in range(2)]
            time.sleep(0.3)
        moved = [answer.result() for answer in asked]
    assert (sorted(moved), yard.seen(rollout).stage) == ([False, True], 1)


def test_rollout_that_halts_while_a_controller_looks_at_it_is_not_moved(yard):
    rollout = yard.rollout(yard.bundle("new"), 1, 100)
    with ThreadPoolExecutor(1) as pool:
        with yard.database.write(bump_revision=False) as session:
            asked = pool.submit(yard.fleet.rollouts.advance, rollout.id)
            time.sleep(0.3)
            session.get_one(DeviceRolloutRow, rollout.id).status = RolloutStatus.HALTED.value
        assert asked.result() is False
    assert yard.seen(rollout).stage == 0


def test_halting_and_completing_are_told_to_webhooks(yard):
    tenancy = open_tenancy(yard.database, yard.clock)
    organization_id = tenancy.projects.get(yard.project_id).organization_id
    webhooks = WebhookRepository(yard.database, yard.clock, str)
    webhooks.create(organization_id, name="w", url="https://example.org/hook")
    bad, good = yard.bundle("bad"), yard.bundle("good")
    unit = yard.device()
    halting = yard.rollout(bad)
    unit.wants()
    unit.ends(bad, 1, is_success=False)
    yard.fleet.rollouts.cancel(yard.project_id, halting.id)
    yard.rollout(good)
    unit.wants()
    unit.ends(good, 1, is_success=True)
    yard.step()
    with yard.database.read() as session:
        events = session.scalars(select(DeliveryRow.event).order_by(DeliveryRow.created_at)).all()
    assert sorted(events) == ["device.rollout.completed", "device.rollout.halted"]


def test_errors_are_told_once_and_never_fill_the_store(yard):
    unit = yard.device()
    same = DeviceError(1.0, "oom", "out of memory")
    unit.beat(errors=(same, same))
    unit.beat(errors=(same,))
    assert yard.told(unit) == ["enrolled", "error"]
    for start in range(0, MAX_EVENTS + 40, 20):
        errors = tuple(DeviceError(float(n), "x", "y" * 5000) for n in range(start, start + 20))
        unit.beat(errors=errors)
    with yard.database.read() as session:
        count = session.connection().exec_driver_sql("SELECT count(*) FROM device_events").scalar()
    assert count <= MAX_EVENTS + 1


def test_errors_of_a_heartbeat_are_one_look_up_and_one_insert(yard):
    unit = yard.device()

    def statements(count: int) -> int:
        errors = tuple(DeviceError(float(n), str(count), f"error {n}") for n in range(count))
        seen: list[str] = []

        def note(_connection, _cursor, statement, *_rest) -> None:
            seen.append(statement)

        event.listen(yard.database.engine, "before_cursor_execute", note)
        unit.beat(errors=errors)
        event.remove(yard.database.engine, "before_cursor_execute", note)
        return len(seen)

    assert statements(1) == statements(20)
    page = yard.fleet.devices.events(yard.project_id, unit.id, ALL)
    assert [item.message for item in page.items][2:] == [f"error {n}" for n in range(20)]


def test_heartbeats_of_one_device_in_one_batch_follow_each_other(yard):
    one, two = yard.bundle("one"), yard.bundle("two")
    yard.fleet.channels.set(yard.project_id, "stable", one)
    unit = yard.device()
    early = unit.beat_with()
    unit.runs = one
    late = unit.beat_with(outcome=Outcome(one, 0, True))
    yard.fleet.heartbeats.take([early, late])
    assert yard.told(unit) == ["enrolled", "update_succeeded"]
    yard.fleet.channels.set(yard.project_id, "stable", two)
    assert unit.wants() == two


def test_another_project_sees_none_of_it(yard):
    unit, bundle_id = yard.device(), yard.bundle("b")
    rollout = yard.rollout(bundle_id)
    fleet, other = yard.fleet, "proj-other"
    code = fleet.enrolment.list(yard.project_id, ALL).items[0]
    for use in (
        lambda: fleet.devices.get(other, unit.id),
        lambda: fleet.devices.events(other, unit.id, ALL),
        lambda: fleet.devices.modify(other, unit.id, {"name": "x"}),
        lambda: fleet.devices.retire(other, unit.id),
        lambda: fleet.groups.get(other, "default"),
        lambda: fleet.groups.modify(other, "default", {"heartbeat_s": 1}),
        lambda: fleet.groups.delete(other, "default"),
        lambda: fleet.channels.get(other, "stable"),
        lambda: fleet.channels.set(other, "stable", bundle_id),
        lambda: fleet.rollouts.get(other, rollout.id),
        lambda: fleet.rollouts.pause(other, rollout.id),
        lambda: fleet.rollouts.resume(other, rollout.id),
        lambda: fleet.rollouts.cancel(other, rollout.id),
        lambda: fleet.enrolment.delete(other, code.id),
    ):
        with pytest.raises(NotFound):
            use()
    assert fleet.devices.list(other, DeviceFilter(), ALL).items == ()
