"""Watches the machine for its engine, while the engine computes."""

import threading
import time
from collections.abc import Callable

from maas.edge.runtime.battery import BatteryReader, read_battery
from maas.edge.runtime.engine.pace import Pace, next_pace, wanted_pace
from maas.edge.runtime.thermal import Heat, read_heat

_EVERY_S = 2.0


class MachinePace:
    """The pace that suits this machine now. May be asked at each step, from any thread.

    Nothing runs while nobody asks: an idle device is not woken. The machine is read in a thread
    of its own, one at a time: a sensor that hangs holds up nothing but the readings.

    Args:
        read_heat: Reads the hottest zone.
        read_battery: Reads the battery.
        clock: Gives seconds.
    """

    def __init__(
        self,
        read_heat: Callable[[], Heat | None] = read_heat,
        read_battery: BatteryReader = read_battery,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_heat = read_heat
        self._read_battery = read_battery
        self._clock = clock
        self._pace = Pace(reason="untold")
        self._set_at = clock()
        self._due_at = self._set_at
        self._is_reading = threading.Lock()

    def __call__(self) -> Pace:
        """Return the pace by the last reading; where that is old, another begins."""
        now = self._clock()
        if now >= self._due_at and self._is_reading.acquire(blocking=False):
            self._due_at = now + _EVERY_S
            try:
                threading.Thread(target=self._read, name="pace", daemon=True).start()
            except RuntimeError:
                # No thread is to be had now, or the process ends.
                self._is_reading.release()
        return self._pace

    def _read(self) -> None:
        try:
            wanted = wanted_pace(self._read_heat(), self._read_battery())
            now = self._clock()
            self._pace = next_pace(self._pace, wanted, now - self._set_at)
            self._set_at = now
        finally:
            self._is_reading.release()
