"""Heat, where the machine tells of it: Linux's thermal zones.

Source: Documentation/driver-api/thermal/sysfs-api.rst in the Linux kernel.
"""

from dataclasses import dataclass
from pathlib import Path

_ZONES = Path("/sys/class/thermal")
# Where a zone does not say when it is too hot: boards' firmware begins to slow down about there,
# Intel's packages at 100.
_LIMIT_C = 85.0
_LIMITS_C = {"x86_pkg_temp": 95.0}
# Sensors that are off, or not there, say 0 or something like -274; so do trips nobody has set.
_MAX_C = 150.0
# No machine is slowed down below that: firmware that says so is wrong.
_MIN_LIMIT_C = 40.0
# The kernel slows the machine down at the first, and warns at the second.
_TRIPS = frozenset({"passive", "hot"})


@dataclass(frozen=True)
class Heat:
    """The zone that is nearest to being too hot.

    Attributes:
        zone: What it measures, as the kernel names it.
        temperature_c: Now, in °C.
        limit_c: Where the machine begins to be slowed down.
    """

    zone: str
    temperature_c: float
    limit_c: float

    @property
    def margin_k(self) -> float:
        """How much hotter it may become; below zero where it is too hot."""
        return self.limit_c - self.temperature_c


def read_heat(root: Path = _ZONES) -> Heat | None:
    """Return the zone with the least margin; none on machines that tell of none."""
    zones = (_read_zone(zone) for zone in sorted(root.glob("thermal_zone*")))
    return min((z for z in zones if z), key=lambda zone: zone.margin_k, default=None)


def _read_zone(zone: Path) -> Heat | None:
    temperature = _degrees(zone / "temp")
    if temperature is None or not 0 < temperature <= _MAX_C:
        return None
    try:
        kind = (zone / "type").read_text().strip()
    except (OSError, ValueError):
        return None
    limits = [limit for trip in zone.glob("trip_point_*_type") if (limit := _limit(trip))]
    return Heat(kind, temperature, min(limits, default=_LIMITS_C.get(kind, _LIMIT_C)))


def _limit(trip: Path) -> float | None:
    try:
        is_limit = trip.read_text().strip() in _TRIPS
    except (OSError, ValueError):
        return None
    limit = _degrees(trip.with_name(trip.name.removesuffix("type") + "temp")) if is_limit else None
    return limit if limit is not None and _MIN_LIMIT_C <= limit <= _MAX_C else None


def _degrees(path: Path) -> float | None:
    """Return what a file says in thousandths of a degree."""
    try:
        return int(path.read_text()) / 1000
    except (OSError, ValueError):
        return None
