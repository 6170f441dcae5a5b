"""The machine is watched seldom, beside the engine, and not at all while nobody asks."""

import threading
import time

import pytest

from maas.edge.runtime.battery import Battery
from maas.edge.runtime.engine.pace import Pace, at_untold_pace
from maas.edge.runtime.pacer import MachinePace, watch_machine
from maas.edge.runtime.thermal import Heat

HOT, COLD = Heat("cpu", 85.0, 85.0), Heat("cpu", 40.0, 85.0)


class Machine:
    """One whose heat and time a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.heat: Heat | None = HOT
        self.error: Exception | None = None
        self.readers: list[str] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def read_heat(self) -> Heat | None:
        self.readers.append(threading.current_thread().name)
        self.may_answer.wait(10)
        if self.error is not None:
            raise self.error
        return self.heat

    def pace(self, battery: Battery | None = None, max_wait_s: float = 0.01) -> MachinePace:
        return MachinePace(self.read_heat, lambda: battery, lambda: self.now, max_wait_s)


def settled(pace: MachinePace) -> Pace:
    """Return the pace once its reading is over."""
    pace()
    deadline = time.monotonic() + 10
    while any(thread.name == "pace" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return pace()


def test_the_machine_is_read_every_two_seconds_however_often_it_is_asked():
    machine = Machine()
    pace = machine.pace()
    assert [settled(pace).share for _ in range(50)] == [0.25] * 50
    assert machine.readers == ["pace"], "beside whoever asks"
    machine.now += 1.9
    settled(pace)
    assert len(machine.readers) == 1
    machine.now += 0.2
    settled(pace)
    assert len(machine.readers) == 2


def test_nothing_is_read_until_somebody_asks():
    machine = Machine()
    machine.pace()
    assert machine.readers == []


def test_a_machine_that_cools_is_used_more_by_and_by():
    machine = Machine()
    pace = machine.pace()
    assert settled(pace) == Pace(0.25, "hot", 85.0)
    machine.heat = COLD
    machine.now += 2
    assert settled(pace) == Pace(pytest.approx(0.35), "hot", 40.0)
    machine.now += 60
    assert settled(pace) == Pace(1.0, "cool", 40.0)


def test_a_machine_that_tells_nothing_is_never_spared_and_says_so():
    machine = Machine()
    machine.heat = None
    assert settled(machine.pace()) == Pace(1.0, "untold", None)
    assert settled(machine.pace(Battery(10, False))) == Pace(0.7, "battery", None)


def test_a_sensor_that_hangs_holds_up_nobody_and_is_asked_once():
    machine = Machine()
    machine.may_answer.clear()
    pace = machine.pace()
    for _ in range(5):
        assert pace().share == 1.0
        machine.now += 10
    assert len(machine.readers) == 1
    machine.may_answer.set()
    assert settled(pace).share == 0.25


def test_without_a_thread_to_be_had_the_pace_stays(monkeypatch):
    machine = Machine()
    pace = machine.pace()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert pace().share == 1.0
    machine.now += 2
    assert settled(pace).share == 0.25


def test_a_sensor_that_hangs_tells_nothing_after_a_minute():
    machine = Machine()
    pace = machine.pace()
    assert settled(pace) == Pace(0.25, "hot", 85.0)
    machine.may_answer.clear()
    machine.now += 59
    assert pace() == Pace(0.25, "hot", 85.0)
    machine.now += 2
    assert pace() == Pace(1.0, "untold", None)
    machine.may_answer.set()
    assert settled(pace) == Pace(0.25, "hot", 85.0)


@pytest.mark.parametrize("error", [OSError("no such device"), ValueError("not a number")])
def test_a_sensor_that_fails_tells_nothing_after_a_minute_and_is_logged_once(caplog, error):
    machine = Machine()
    pace = machine.pace()
    settled(pace)
    machine.error = error
    for _ in range(30):
        machine.now += 2
        assert settled(pace) == Pace(0.25, "hot", 85.0)
    machine.now += 2
    assert settled(pace) == Pace(1.0, "untold", None)
    assert [record.getMessage() for record in caplog.records] == [
        f"the machine's heat and battery cannot be read: {error}"
    ]
    machine.error = None
    machine.now += 2
    assert settled(pace) == Pace(0.25, "hot", 85.0)


def test_who_asks_first_after_an_hour_is_told_how_hot_it_is_now():
    machine = Machine()
    pace = machine.pace(max_wait_s=10)
    settled(pace)
    machine.heat = COLD
    machine.now += 3600
    machine.may_answer.clear()
    threading.Timer(0.05, machine.may_answer.set).start()
    assert pace() == Pace(1.0, "cool", 40.0)


def test_a_machine_that_tells_nothing_at_its_start_is_not_watched():
    machine = Machine()
    machine.heat = None
    assert watch_machine(machine.pace) is at_untold_pace
    machine.heat = COLD
    assert watch_machine(machine.pace)() == Pace(1.0, "cool", 40.0)


def test_a_sensor_that_is_slow_at_the_start_may_still_tell():
    machine = Machine()
    machine.may_answer.clear()
    pace = machine.pace()
    assert pace.may_tell(timeout_s=0.01)
    machine.may_answer.set()
    assert settled(pace).share == 0.25
