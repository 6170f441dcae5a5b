"""A rollout's decisions: who is in it only grows, failures stop it at the limit and for good."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas.store.rollout_rules import (
    OVER,
    Course,
    Member,
    RolloutStatus,
    Step,
    Wish,
    is_in,
    is_stage_over,
    must_halt,
    share_of,
    step_of,
    wish_of,
)

NEW, OLD = "new", "old"
ids = st.text("abcdef0123456789", min_size=1, max_size=20)
percents = st.floats(0, 100)
members = st.builds(
    Member,
    is_online=st.booleans(),
    is_recent=st.booleans(),
    is_done=st.booleans(),
    is_told=st.booleans(),
)


def course(status: RolloutStatus = RolloutStatus.RUNNING, percent: float = 100) -> Course:
    return Course("rollout-1", NEW, status, attempt=3, percent=percent)


def wish(device: str = "d", *, pins=(None, None), channel=OLD, of=None, runs=OLD) -> Wish | None:
    return wish_of(device, pins, channel, of, runs)


@given(ids, ids, percents, percents)
def test_who_is_in_a_stage_is_in_all_that_follow(rollout_id, device_id, one, other):
    smaller, larger = sorted((one, other))
    if is_in(rollout_id, device_id, smaller):
        assert is_in(rollout_id, device_id, larger)
    assert is_in(rollout_id, device_id, 100)
    assert not is_in(rollout_id, device_id, 0)
    assert 0 <= share_of(rollout_id, device_id) < 1


def test_shares_are_even_and_another_rollout_begins_with_other_devices():
    devices = [f"device-{n}" for n in range(10_000)]
    first = {device for device in devices if is_in("rollout-1", device, 10)}
    second = {device for device in devices if is_in("rollout-2", device, 10)}
    assert 900 < len(first) < 1100
    assert len(first & second) < 200


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 1000), st.floats(0, 100))
def test_it_halts_exactly_at_the_limit(min_reports, num_failed, num_succeeded, limit):
    halts = must_halt(num_failed, num_succeeded, min_reports=min_reports, max_failure_percent=limit)
    is_past = num_failed * 100 > limit * (num_failed + num_succeeded)
    assert halts == (num_failed >= min_reports and is_past)
    if halts:
        # One more failure, or one success less, never mends it.
        more = must_halt(
            num_failed + 1, num_succeeded, min_reports=min_reports, max_failure_percent=limit
        )
        assert more


def test_limits_at_their_edge():
    def halts(num_failed: int, num_succeeded: int, min_reports: int = 1) -> bool:
        return must_halt(
            num_failed, num_succeeded, min_reports=min_reports, max_failure_percent=5.0
        )

    assert not halts(0, 0)
    assert halts(1, 0)
    assert not halts(1, 19)
    assert halts(1, 18)
    assert not halts(2, 0, min_reports=3)
    assert halts(3, 0, min_reports=3)
    assert not must_halt(7, 0, min_reports=1, max_failure_percent=100.0)


@given(
    st.sets(ids, min_size=1, max_size=50),
    st.sets(ids, max_size=50),
    percents,
    st.sampled_from([RolloutStatus.HALTED, RolloutStatus.PAUSED]),
)
def test_nobody_takes_the_bundle_of_a_rollout_that_stands(devices, running, percent, status):
    for device in devices:
        runs = NEW if device in running else OLD
        wanted = wish(device, of=course(status, percent), runs=runs)
        assert wanted is not None
        if wanted.bundle_id == NEW:
            assert device in running
            assert is_in("rollout-1", device, percent)
    # And who runs it, and is in it, is not sent back.
    for device in devices & running:
        if is_in("rollout-1", device, percent):
            assert wish(device, of=course(status, percent), runs=NEW) == Wish(NEW, 3, "rollout-1")


@given(st.sets(ids, min_size=1, max_size=50), percents, percents)
def test_devices_that_want_the_bundle_only_grow_while_it_runs(devices, one, other):
    smaller, larger = sorted((one, other))
    early = {d for d in devices if wish(d, of=course(percent=smaller)) == Wish(NEW, 3, "rollout-1")}
    late = {d for d in devices if wish(d, of=course(percent=larger)) == Wish(NEW, 3, "rollout-1")}
    assert early <= late


@given(ids, st.sampled_from(sorted(OVER)))
def test_one_that_is_over_decides_nothing(device, status):
    for runs in (NEW, OLD, None):
        assert wish(device, of=course(status), runs=runs) == Wish(OLD)


def test_pins_are_stronger_than_rollout_and_channel():
    assert wish(pins=("mine", "ours"), of=course()) == Wish("mine")
    assert wish(pins=(None, "ours"), of=course()) == Wish("ours")
    assert wish(of=course()) == Wish(NEW, 3, "rollout-1")
    assert wish() == Wish(OLD)
    assert wish(channel=None) is None


@given(st.lists(members, max_size=30), st.floats(0, 1000), st.floats(0, 1000))
def test_no_stage_ends_early_or_before_who_is_online_has_reported(known, elapsed_s, min_s):
    is_over = is_stage_over(known, elapsed_s=elapsed_s, min_s=min_s)
    if is_over:
        assert elapsed_s >= min_s
        assert all(item.is_done for item in known if item.is_online)
    assert is_stage_over([], elapsed_s=min_s, min_s=min_s)


DONE, SILENT, WAITING = (
    Member(True, True, True),
    Member(False, True, False),
    Member(True, True, False),
)


def test_silence_is_no_success():
    def is_over(*known: Member) -> bool:
        return is_stage_over(known, elapsed_s=1, min_s=0)

    assert is_over(DONE)
    assert is_over(DONE, SILENT), "half of them will do"
    assert not is_over(DONE, SILENT, SILENT)
    assert not is_over(SILENT), "the bundle may have broken it, or no heartbeat comes through"
    assert not is_over(DONE, WAITING)
    away = replace(SILENT, is_recent=False)
    assert is_over(DONE, away, away, away), "who was away for a day is not waited for"
    assert not is_over(away)


@pytest.mark.parametrize(
    ("told", "online", "done", "missing"),
    [
        *((True, False, False, True), (True, True, False, False)),
        *((True, False, True, False), (False, False, False, False)),
    ],
)
def test_missing_is_who_was_told_and_said_nothing_since(told, online, done, missing):
    member = Member(is_online=online, is_recent=True, is_done=done, is_told=told)
    assert member.is_missing is missing
    assert replace(member, is_recent=False).is_missing is missing, "however long ago"


@given(
    st.lists(st.tuples(members, st.booleans()), max_size=30),
    st.floats(0, 1000),
    st.floats(0, 1000),
    percents,
    st.integers(1, 100),
)
def test_no_stage_ends_well_while_too_many_failed(known, elapsed_s, min_s, limit, min_reports):
    num_failed = sum(item.is_done and is_bad for item, is_bad in known)
    num_succeeded = sum(item.is_done and not is_bad for item, is_bad in known)
    is_failing = must_halt(num_failed, num_succeeded, min_reports=1, max_failure_percent=limit)
    stage = [item for item, _ in known]
    num_missing = sum(item.is_missing for item in stage)
    is_doubtful = must_halt(
        num_failed + num_missing, num_succeeded, min_reports=1, max_failure_percent=limit
    )
    step = step_of(
        stage, elapsed_s=elapsed_s, min_s=min_s, is_failing=is_failing, is_doubtful=is_doubtful
    )
    if num_failed * 100 > limit * (num_failed + num_succeeded):
        assert step is not Step.ADVANCE
        has_all = is_stage_over(stage, elapsed_s=0, min_s=0)
        assert step is (Step.HALT if has_all else Step.WAIT), "whatever its time and min_reports"
    else:
        assert step is not Step.HALT
        is_over = is_stage_over(stage, elapsed_s=elapsed_s, min_s=min_s)
        assert (step is Step.ADVANCE) == (is_over and not is_doubtful)
        if (num_failed + num_missing) * 100 > limit * (num_failed + num_missing + num_succeeded):
            assert step in {Step.WAIT, Step.HOLD}, "nor while too many fell silent over the bundle"
            is_awaited = any(item.is_online and not item.is_done for item in stage)
            assert (step is Step.HOLD) == (elapsed_s >= min_s and not is_awaited)
        else:
            assert step is not Step.HOLD
    if must_halt(num_failed, num_succeeded, min_reports=min_reports, max_failure_percent=limit):
        assert step is not Step.ADVANCE
