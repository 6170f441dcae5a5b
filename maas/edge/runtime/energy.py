"""Energy, where the machine counts it: Linux's powercap (RAPL).

Source: Documentation/power/powercap in the Linux kernel.
"""

from pathlib import Path

_ROOT = Path("/sys/class/powercap")


class EnergyMeter:
    """Counts the energy of the processor packages since it was made.

    Attributes:
        note: How it counts, or why it cannot.
    """

    def __init__(self, root: Path = _ROOT) -> None:
        # Packages only: their parts are counted in them.
        self._zones = [
            zone / "energy_uj"
            for zone in sorted(root.glob("*-rapl:*"))
            if zone.name.count(":") == 1
        ]
        self._start = self._read()
        if self._start is None:
            self.note = "this machine does not tell its energy (no readable powercap counter)"
        else:
            self.note = "processor packages by powercap (RAPL), whatever else ran included"

    def joules_since_start(self) -> float | None:
        """Return the energy in joules; none where it cannot be told."""
        now = self._read()
        if now is None or self._start is None or now < self._start:
            # Counters begin anew when they are full.
            return None
        return (now - self._start) / 1e6

    def _read(self) -> int | None:
        try:
            return sum(int(zone.read_text()) for zone in self._zones) if self._zones else None
        except (OSError, ValueError):
            return None
