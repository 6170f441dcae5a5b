"""Here or in the cloud: every combination of facts."""

import itertools

import pytest

from maas.core.errors import (
    CapabilityMissing,
    EngineError,
    InvalidRequest,
    ModelNotFound,
    NoReplica,
    PromptTooLong,
)
from maas.edge.runtime.battery import Battery
from maas.edge.runtime.server.decision import Facts, Reason, decide, failure_of

MODES = ("auto", "never", "always")
BATTERIES = (
    None,
    Battery(5, False),
    Battery(5, None),
    Battery(5, True),
    Battery(20, False),
    Battery(90, False),
)
FAILURES = (None, Reason.TOO_LONG, Reason.CAPABILITY, Reason.ENGINE, Reason.NO_BUNDLE)
FLAGS = (False, True)
CLOUDS, MODELS = (None, "cloud"), ("cloud", "tiny")
ALL = itertools.product(MODES, CLOUDS, MODELS, FLAGS, FLAGS, FLAGS, BATTERIES, FAILURES)


def expected(facts: Facts) -> set[Reason | None]:
    """What may be decided, said another way: as sets, without an order."""
    if facts.mode != "auto":
        return {Reason.ASKED} if facts.mode == "always" else {None}
    if facts.cloud_model is None:
        return {None}
    reasons = set[Reason | None]()
    if facts.failure:
        reasons.add(facts.failure)
    if facts.model == "cloud" and not facts.is_served:
        reasons.add(Reason.MODEL)
    if not facts.has_bundle:
        reasons.add(Reason.NO_BUNDLE)
    if facts.needs_tool_parser:
        reasons.add(Reason.CAPABILITY)
    if reasons:
        return reasons
    battery = facts.battery
    low = battery is not None and battery.percent < 20 and not battery.is_charging
    return {Reason.BATTERY} if low else {None}


def test_every_combination():
    num_cases = 0
    for mode, cloud, model, has, served, tools, battery, failure in ALL:
        facts = Facts(
            mode=mode,
            cloud_model=cloud,
            model=model,
            has_bundle=has,
            is_served=served,
            needs_tool_parser=tools,
            battery=battery,
            min_battery_percent=20,
            failure=failure,
        )
        assert decide(facts) in expected(facts), facts
        num_cases += 1
    assert num_cases == 3 * 2 * 2 * 8 * 6 * 5


def test_only_a_low_battery_leaves_a_choice():
    assert [reason for reason in Reason if not reason.is_needed] == [Reason.BATTERY]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PromptTooLong("x"), Reason.TOO_LONG),
        (CapabilityMissing("x"), Reason.CAPABILITY),
        (EngineError("x"), Reason.ENGINE),
        (NoReplica("x"), Reason.NO_BUNDLE),
        (InvalidRequest("x"), None),
        (ModelNotFound("x"), None),
    ],
)
def test_what_an_error_says_of_the_device(error, reason):
    assert failure_of(error) is reason
