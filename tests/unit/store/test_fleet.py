"""The fleet's repositories, on both databases: codes, keys, groups, heartbeats."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event

from maas.core.errors import AuthenticationFailed, Conflict, InvalidEnrolmentCode, NotFound
from maas.store.bundles import BundleRepository
from maas.store.device_events import MAX_EVENTS
from maas.store.device_groups import NewGroup
from maas.store.devices import DeviceFilter
from maas.store.enrolment import KEPT_S, REPLAYED_S, Applicant
from maas.store.heartbeats import DeviceError, Orders, Outcome
from maas.store.roles import DEVICE_SCOPE, FALLBACK_SCOPE
from maas.store.state import StateReader
from maas.store.tenancy import open_tenancy
from tests.unit.store.fleet_yard import ALL, Yard, open_yard


@pytest.fixture
def yard(database, clock) -> Yard:
    return open_yard(database, clock)


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
