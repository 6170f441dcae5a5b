"""Watches the machine for its engine, while the engine computes."""

import logging
import threading
import time
from collections.abc import Callable

from maas.edge.runtime.battery import BatteryReader, read_battery
from maas.edge.runtime.engine.pace import (
    Pace,
    PaceReader,
    at_untold_pace,
    next_pace,
    wanted_pace,
)
from maas.edge.runtime.thermal import Heat, read_heat

log = logging.getLogger(__name__)

_EVERY_S = 2.0
# What was read before that says nothing of the machine as it is.
_MAX_AGE_S = 60.0
# A reading takes a few milliseconds, on a machine whose sensors answer.
_MAX_WAIT_S = 0.1
_MAX_START_S = 2.0


class MachinePace:
    """The pace that suits this machine now. May be asked at each step, from any thread.

    Nothing runs while nobody asks: an idle device is not woken. The machine is read in a thread
    of its own, one at a time: a sensor that hangs holds up nothing but the readings. Where they
    fail, or hang, the last one holds for a minute; then the machine tells nothing.

    Args:
        read_heat: Reads the hottest zone.
        read_battery: Reads the battery.
        clock: Gives seconds.
        max_wait_s: Whoever asks first after a minute waits so long for a reading.
    """

    def __init__(
        self,
        read_heat: Callable[[], Heat | None] = read_heat,
        read_battery: BatteryReader = read_battery,
        clock: Callable[[], float] = time.monotonic,
        max_wait_s: float = _MAX_WAIT_S,
    ) -> None:
        self._read_heat = read_heat
        self._read_battery = read_battery
        self._clock = clock
        self._max_wait_s = max_wait_s
        self._due_at = clock()
        # One value, so that no pace is taken for older or newer than it is.
        self._last = (at_untold_pace(), self._due_at)
        self._is_reading = threading.Lock()
        self._has_failed = False

    def __call__(self) -> Pace:
        """Return the pace by the last reading; where that is old, another begins."""
        now = self._clock()
        reading = self._begin(now)
        if reading is not None and self._is_old(now):
            # Nobody asked meanwhile: an idle device's heartbeats would never have a temperature.
            reading.join(self._max_wait_s)
        return at_untold_pace() if self._is_old(now) else self._last[0]

    def may_tell(self, timeout_s: float = _MAX_START_S) -> bool:
        """Read the machine; false where it tells neither heat nor a battery.

        Args:
            timeout_s: One that has not answered by then may still tell.
        """
        reading = self._begin(self._clock())
        if reading is not None:
            reading.join(timeout_s)
        return self._is_reading.locked() or self._last[0].reason != "untold"

    def _is_old(self, now: float) -> bool:
        return now - self._last[1] > _MAX_AGE_S

    def _begin(self, now: float) -> threading.Thread | None:
        """Begin a reading where one is due and none goes on; none: neither."""
        if now < self._due_at or not self._is_reading.acquire(blocking=False):
            return None
        self._due_at = now + _EVERY_S
        reading = threading.Thread(target=self._read, name="pace", daemon=True)
        try:
            reading.start()
        except RuntimeError:
            # No thread is to be had now, or the process ends.
            self._is_reading.release()
            return None
        return reading

    def _read(self) -> None:
        try:
            wanted = wanted_pace(self._read_heat(), self._read_battery())
            now = self._clock()
            before, set_at = self._last
            self._last = (next_pace(before, wanted, now - set_at), now)
        except (OSError, ValueError) as error:
            if not self._has_failed:
                self._has_failed = True
                log.warning("the machine's heat and battery cannot be read: %s", error)
        finally:
            self._is_reading.release()


def watch_machine(make: Callable[[], MachinePace] = MachinePace) -> PaceReader:
    """Return the pace that suits this machine; one that never pauses where it tells nothing.

    An engine that may pause is a few percent slower, pauses or not.

    Args:
        make: Makes what watches it.
    """
    pace = make()
    return pace if pace.may_tell() else at_untold_pace
