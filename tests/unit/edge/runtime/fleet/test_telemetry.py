"""What a device measures of itself."""

import pytest

from maas.edge.runtime.battery import Battery
from maas.edge.runtime.energy import EnergyMeter
from maas.edge.runtime.fleet.telemetry import (
    BatteryGauge,
    EnergyGauge,
    read_machine,
    read_memory,
)
from maas.edge.runtime.server.counters import Counters


def test_the_battery_is_not_read_at_every_request():
    readings = [Battery(10.0, False), Battery(9.0, False)]
    gauge = BatteryGauge(lambda: readings.pop(0), max_age_s=60)
    assert [gauge(), gauge()] == [Battery(10.0, False)] * 2
    gauge = BatteryGauge(lambda: readings.pop(0), max_age_s=0)
    assert gauge() == Battery(9.0, False)


def test_energy_is_of_the_time_since_the_last_reading(tmp_path):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "energy_uj").write_text("1000000")
    gauge = EnergyGauge(lambda: EnergyMeter(tmp_path))
    (zone / "energy_uj").write_text("5000000")
    energy = gauge.read(8, Battery(50.0, True))
    assert energy.joules_per_token == pytest.approx(0.5)
    assert energy.watts > 0
    assert (energy.battery_percent, energy.is_charging) == (50.0, True)
    (zone / "energy_uj").write_text("6000000")
    assert gauge.read(8, None).joules_per_token is None
    (zone / "energy_uj").write_text("8000000")
    assert gauge.read(9, None).joules_per_token == pytest.approx(2)


def test_a_machine_that_does_not_tell_its_energy_says_so(tmp_path):
    energy = EnergyGauge(lambda: EnergyMeter(tmp_path)).read(5, None)
    assert (energy.joules_per_token, energy.watts) == (None, None)
    assert "does not tell" in energy.note


def test_machine_and_memory_have_numbers():
    machine, memory = read_machine(), read_memory()
    assert machine.num_cpus > 0
    assert 0 < memory.rss_bytes < machine.ram_bytes
    assert 0 < memory.available_bytes <= machine.ram_bytes
    assert machine.processor


def test_speed_is_of_lone_answers_of_some_length():
    counters = Counters()
    counters.answered(3, 1.0, num_choices=1)
    counters.answered(100, 1.0, num_choices=4)
    assert (counters.decode_tok_s, counters.num_completion_tokens) == (None, 103)
    counters.answered(11, 1.0, num_choices=1)
    counters.answered(21, 1.0, num_choices=1)
    assert counters.decode_tok_s == pytest.approx(12)
