"""The battery, where the machine tells of one.

Source: Documentation/ABI/testing/sysfs-class-power in the Linux kernel; psutil elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_SUPPLIES = Path("/sys/class/power_supply")
_IS_CHARGING = {"Charging": True, "Full": True, "Not charging": True, "Discharging": False}


@dataclass(frozen=True)
class Battery:
    """How full it is.

    Attributes:
        percent: 0 to 100.
        is_charging: Or on the mains; none where the machine does not say.
    """

    percent: float
    is_charging: bool | None


BatteryReader = Callable[[], Battery | None]


def read_battery(root: Path = _SUPPLIES) -> Battery | None:
    """Return how full the battery is; none on machines without one."""
    if not root.is_dir():
        return _psutil_battery()
    supplies = sorted(root.glob("*"))
    for supply in supplies:
        try:
            # A mouse's battery is not the device's.
            scope = supply / "scope"
            is_own = not scope.exists() or scope.read_text().strip() == "System"
            if _kind(supply) != "Battery" or not is_own:
                continue
            percent = float((supply / "capacity").read_text())
            status = (supply / "status").read_text().strip()
        except (OSError, ValueError):
            continue
        # Some batteries do not know; the plug does.
        is_charging = _IS_CHARGING[status] if status in _IS_CHARGING else _is_plugged(supplies)
        return Battery(min(max(percent, 0.0), 100.0), is_charging)
    return None


def _is_plugged(supplies: Sequence[Path]) -> bool | None:
    """Say whether the mains are there; none where no plug tells."""
    told: list[bool] = []
    for supply in supplies:
        try:
            if _kind(supply) == "Mains":
                told.append((supply / "online").read_text().strip() == "1")
        except (OSError, ValueError):
            continue
    return any(told) if told else None


def _kind(supply: Path) -> str:
    return (supply / "type").read_text().strip()


def _psutil_battery() -> Battery | None:
    read = getattr(psutil, "sensors_battery", lambda: None)
    found = read()
    return None if found is None else Battery(float(found.percent), found.power_plugged)
