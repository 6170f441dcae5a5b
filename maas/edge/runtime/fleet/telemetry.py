"""What a device measures of itself."""

import os
import platform
import time
from collections.abc import Callable

import psutil

from maas.edge.runtime.battery import Battery, BatteryReader
from maas.edge.runtime.bench import processor_name
from maas.edge.runtime.energy import EnergyMeter
from maas.edge.runtime.fleet.wire import cut
from maas.protocol.devices import EnergyReport, MachineReport, MemoryReport

_MAX_AGE_S = 10.0
_MAX_NAME = 128


class BatteryGauge:
    """A battery that is read once in a while, not at every request.

    Args:
        read: Reads it.
        max_age_s: For so long a reading is good.
    """

    def __init__(self, read: BatteryReader, max_age_s: float = _MAX_AGE_S) -> None:
        self._read = read
        self._max_age_s = max_age_s
        self._read_at = -max_age_s
        self._last: Battery | None = None

    def __call__(self) -> Battery | None:
        """Return how full it is."""
        now = time.monotonic()
        if now - self._read_at >= self._max_age_s:
            self._read_at, self._last = now, self._read()
        return self._last


class EnergyGauge:
    """Energy from one heartbeat to the next.

    Args:
        make_meter: Starts counting.
    """

    def __init__(self, make_meter: Callable[[], EnergyMeter] = EnergyMeter) -> None:
        self._make_meter = make_meter
        self._meter = make_meter()
        self._started = time.monotonic()
        self._num_tokens = 0

    def read(self, num_tokens: int, battery: Battery | None) -> EnergyReport:
        """Return what was used since the last time.

        Args:
            num_tokens: Answer tokens since the agent's start.
            battery: As it is now.
        """
        joules = self._meter.joules_since_start()
        seconds = time.monotonic() - self._started
        num_new = num_tokens - self._num_tokens
        energy = EnergyReport(
            joules_per_token=None if joules is None or num_new <= 0 else joules / num_new,
            watts=None if joules is None or seconds <= 0 else joules / seconds,
            battery_percent=battery.percent if battery else None,
            is_charging=battery.is_charging if battery else None,
            note=cut(self._meter.note, _MAX_NAME),
        )
        self._meter, self._started = self._make_meter(), time.monotonic()
        self._num_tokens = num_tokens
        return energy


def read_machine() -> MachineReport:
    """Return what this machine is."""
    return MachineReport(
        system=cut(f"{platform.system()} {platform.release()} {platform.machine()}", _MAX_NAME),
        processor=cut(processor_name(), _MAX_NAME),
        num_cpus=os.cpu_count() or 1,
        ram_bytes=psutil.virtual_memory().total,
    )


def read_memory() -> MemoryReport:
    """Return this process's memory, and what is left of the machine's."""
    return MemoryReport(psutil.Process().memory_info().rss, psutil.virtual_memory().available)
