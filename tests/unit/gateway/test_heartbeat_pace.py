"""A device may come at its pace and somewhat faster; what comes without end is refused."""

import pytest

from maas.core.errors import LimitExceeded
from maas.edge.runtime.fleet.heartbeats import next_delay
from maas.gateway.devices import pace as paces
from maas.gateway.devices.pace import BURST, INTERVAL_S, HeartbeatPace
from maas.gateway.errors import error_headers, status_of


class Watch:
    """Monotonic seconds that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_burst_passes_and_then_one_an_interval(watch):
    pace = HeartbeatPace(watch)
    for _ in range(BURST):
        pace.check("a")
    for _ in range(3):
        with pytest.raises(LimitExceeded) as refused:
            pace.check("a")
    assert refused.value.context["retry_after_s"] == pytest.approx(INTERVAL_S)
    pace.check("b")
    watch.now += INTERVAL_S
    pace.check("a")
    with pytest.raises(LimitExceeded):
        pace.check("a")
    watch.now += 1000
    for _ in range(BURST):
        pace.check("a")


def test_refusal_is_a_429_that_says_when(watch):
    pace = HeartbeatPace(watch)
    for _ in range(BURST):
        pace.check("a")
    with pytest.raises(LimitExceeded) as refused:
        pace.check("a")
    assert status_of(refused.value)[0] == 429
    headers = dict(error_headers(refused.value, "req-1"))
    assert headers[b"retry-after"] == b"1"
    assert headers[b"x-maas-limit"] == b"heartbeats_per_device"
    assert b"x-should-retry" not in headers


def test_agent_at_the_fastest_pace_there_is_never_meets_it(watch):
    pace = HeartbeatPace(watch)
    for number in range(5000):
        pace.check("a")
        # Every third comes early: something happened on the device.
        is_hurried = number % 3 == 0
        watch.now += 0.0 if is_hurried else next_delay(1.0, 0, lambda: 0.0)


def test_quiet_devices_are_forgotten(watch, monkeypatch):
    monkeypatch.setattr(paces, "_SWEPT_AT_LEAST", 10)
    pace = HeartbeatPace(watch)
    for number in range(1000):
        pace.check(str(number))
        watch.now += INTERVAL_S
    assert len(pace._whole_at) <= 11
