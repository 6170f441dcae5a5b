"""Rollouts in the store, on both databases: stages, halts, what counts, who is told."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from maas.core.errors import Conflict
from maas.store.fleet_records import NewRollout
from maas.store.fleet_tables import DeviceRolloutRow, DeviceUpdateRow
from maas.store.heartbeats import Outcome
from maas.store.rollout_rules import RolloutStatus, Stage, is_in
from maas.store.tenancy import open_tenancy
from maas.store.webhook_tables import DeliveryRow
from maas.store.webhooks import WebhookRepository
from tests.unit.store.fleet_yard import ALL, Yard, open_yard


@pytest.fixture
def yard(database, clock) -> Yard:
    return open_yard(database, clock)


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
    away.beat()
    stages = (Stage(100, 600.0),)
    rollout = yard.fleet.rollouts.create(
        yard.project_id, NewRollout("stable", new, stages, max_failure_percent=5.0, min_reports=1)
    )
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


def add_webhook(yard: Yard) -> None:
    tenancy = open_tenancy(yard.database, yard.clock)
    organization_id = tenancy.projects.get(yard.project_id).organization_id
    webhooks = WebhookRepository(yard.database, yard.clock, str)
    webhooks.create(organization_id, name="w", url="https://example.org/hook")


def events_of(yard: Yard) -> list[str]:
    """Return what webhooks are told, in order."""
    with yard.database.read() as session:
        return list(session.scalars(select(DeliveryRow.event).order_by(DeliveryRow.created_at)))


def silence(yard: Yard, *, but: list) -> None:
    """Let so much time pass that only some are online."""
    yard.clock.advance(3600)
    for unit in but:
        unit.beat()


def test_next_stage_does_not_begin_while_devices_fell_silent_over_the_bundle(yard):
    add_webhook(yard)
    old, new = yard.bundle("old"), yard.bundle("new")
    yard.fleet.channels.set(yard.project_id, "stable", old)
    units = yard.devices(40)
    rollout = yard.rollout(new, 50, 100, max_failure_percent=2.0)
    stage = [unit for unit in units if unit.wants() == new]
    *good, broken, other = stage
    for unit in good:
        unit.ends(new, 1, is_success=True)
    silence(yard, but=good)
    yard.step()
    seen = yard.seen(rollout)
    assert (seen.stage, seen.status) == (0, RolloutStatus.RUNNING), "it halts for none of them"
    assert (seen.counts.pending, seen.counts.missing) == (2, 2)
    assert "fell silent" in seen.reason
    yard.step()
    assert events_of(yard) == ["device.rollout.held_up"], "it is said once"
    silence(yard, but=[*good, other])
    yard.clock.advance(2 * 86400)
    other.ends(new, 1, is_success=True)
    silence(yard, but=[*good, other])
    yard.step()
    assert yard.seen(rollout).stage == 0, "one is still over the limit, however long ago"
    assert yard.seen(rollout).counts.missing == 1
    broken.ends(new, 1, is_success=True)
    yard.step()
    assert (yard.seen(rollout).stage, yard.seen(rollout).reason) == (1, None)


def test_devices_that_were_away_before_they_were_told_hold_up_no_stage(yard):
    new = yard.bundle("new")
    good, away = yard.devices(2)
    away.beat()
    rollout = yard.rollout(new)
    good.wants()
    silence(yard, but=[good])
    good.ends(new, 1, is_success=True)
    yard.step()
    assert yard.seen(rollout).status is RolloutStatus.COMPLETED


def test_resuming_forgets_who_fell_silent(yard):
    new = yard.bundle("new")
    good, broken = yard.devices(2)
    rollout = yard.rollout(new)
    good.wants(), broken.wants()
    good.ends(new, 1, is_success=True)
    silence(yard, but=[good])
    yard.step()
    assert yard.seen(rollout).status is RolloutStatus.RUNNING
    yard.fleet.rollouts.pause(yard.project_id, rollout.id)
    yard.fleet.rollouts.resume(yard.project_id, rollout.id)
    good.beat()
    yard.step()
    assert yard.seen(rollout).status is RolloutStatus.COMPLETED


def test_stage_whose_only_device_fell_silent_says_so_until_that_is_retired(yard):
    new = yard.bundle("new")
    (broken,) = yard.devices(1)
    rollout = yard.rollout(new)
    broken.wants()
    silence(yard, but=[])
    yard.step()
    assert "fell silent" in yard.seen(rollout).reason
    yard.fleet.rollouts.pause(yard.project_id, rollout.id)
    assert yard.fleet.rollouts.resume(yard.project_id, rollout.id).reason is None
    yard.step()
    assert yard.seen(rollout).status is RolloutStatus.RUNNING, "nobody has reported a success"
    yard.fleet.devices.retire(yard.project_id, broken.id)
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
    add_webhook(yard)
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
    assert sorted(events_of(yard)) == ["device.rollout.completed", "device.rollout.halted"]
