"""The rule: how much of the time a machine computes, by its heat and its battery."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas.edge.runtime.battery import Battery
from maas.edge.runtime.engine.pace import RULE, Pace, next_pace, pause_s, wanted_pace
from maas.edge.runtime.thermal import Heat

MAINS, EMPTYING, FULL = Battery(30, True), Battery(30, False), Battery(90, False)
temperatures = st.floats(-50, 200)
batteries = st.sampled_from([None, MAINS, EMPTYING, FULL, Battery(0, None)])
shares = st.floats(RULE.min_share, 1)


def heat(margin_k: float) -> Heat:
    return Heat("cpu", 85.0 - margin_k, 85.0)


@pytest.mark.parametrize(
    ("margin_k", "battery", "share", "reason"),
    [
        (40, None, 1.0, "cool"),
        (10, None, 1.0, "cool"),
        (5, None, 0.625, "hot"),
        (0, None, 0.25, "hot"),
        (-20, None, 0.25, "hot"),
        (40, MAINS, 1.0, "cool"),
        (40, FULL, 1.0, "cool"),
        (40, EMPTYING, 0.7, "battery"),
        (40, Battery(50, False), 1.0, "cool"),
        # As where the cloud is asked: one that does not say is not trusted to charge.
        (40, Battery(30, None), 0.7, "battery"),
        (5, EMPTYING, 0.625, "hot"),
        (9, EMPTYING, 0.7, "battery"),
    ],
)
def test_heat_and_an_emptying_battery_each_lower_the_share(margin_k, battery, share, reason):
    pace = wanted_pace(heat(margin_k), battery)
    assert pace.share == pytest.approx(share)
    assert (pace.reason, pace.temperature_c) == (reason, 85.0 - margin_k)


def test_a_machine_that_tells_nothing_runs_as_it_is_and_says_so():
    assert wanted_pace(None, None) == Pace(1.0, "untold", None)
    assert wanted_pace(None, MAINS) == Pace(1.0, "cool", None)
    assert wanted_pace(None, EMPTYING) == Pace(RULE.battery_share, "battery", None)


@given(temperatures, temperatures, st.floats(40, 150), batteries)
def test_no_machine_computes_more_for_being_hotter(one, other, limit_c, battery):
    cooler, hotter = (
        wanted_pace(Heat("cpu", degrees, limit_c), battery) for degrees in sorted((one, other))
    )
    assert RULE.min_share <= hotter.share <= cooler.share <= 1
    assert (hotter.share < 1) == (hotter.reason in {"hot", "battery"})


@given(temperatures, batteries, st.sampled_from(["hot", "battery", "cool"]), shares, st.floats(0))
def test_a_pace_falls_at_once_and_never_rises_over_what_is_wanted(
    degrees, battery, reason, before, elapsed_s
):
    wanted = wanted_pace(Heat("cpu", degrees, 85.0), battery)
    pace = next_pace(Pace(before, reason), wanted, elapsed_s)
    assert min(before, wanted.share) <= pace.share <= wanted.share
    assert pace.share <= max(before, 0) + RULE.rise_per_s * elapsed_s or pace == wanted
    assert pace.temperature_c == wanted.temperature_c


def test_a_pace_rises_by_and_by_for_the_reason_it_fell():
    pace = next_pace(Pace(), wanted_pace(heat(0), None), 2)
    assert (pace.share, pace.reason) == (0.25, "hot")
    told = []
    while pace.share < 1:
        pace = next_pace(pace, wanted_pace(heat(30), None), 2)
        told.append((round(pace.share, 2), pace.reason))
    assert told[0] == (0.35, "hot")
    assert told[-1] == (1.0, "cool")
    assert len(told) == 8


def test_a_temperature_that_wavers_makes_the_share_waver_little():
    rule, pace = RULE, Pace(0.6, "hot")
    told = []
    for margin_k in (5, 9, 5, 9, 5, 9, 5):
        pace = next_pace(pace, wanted_pace(heat(margin_k), None), 0.2)
        told.append(pace.share)
    assert max(told) - min(told) <= 0.2 * rule.rise_per_s + 0.026
    quick = replace(rule, rise_per_s=100)
    assert next_pace(pace, wanted_pace(heat(9), None), 0.2, quick).share > 0.9


@given(st.floats(0, 100), shares)
def test_a_step_takes_its_share_of_the_time_and_no_pause_is_long(step_s, share):
    pause = pause_s(step_s, share)
    assert 0 <= pause <= 1
    if pause < 1:
        assert step_s == pytest.approx(share * (step_s + pause))


def test_a_step_of_the_floor_pauses_three_times_as_long():
    assert pause_s(0.1, 0.25) == pytest.approx(0.3)
    assert pause_s(5.0, 0.25) == 1.0
    assert pause_s(5.0, 1.0) == 0.0
