"""How much of the time an engine computes, by how hot its machine is and what it runs on.

The share falls in a band below the temperature at which the kernel would slow the machine down,
so that the machine stays below it. It falls at once and rises slowly: it does not flap.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from maas.edge.runtime.battery import Battery
from maas.edge.runtime.thermal import Heat

# Nobody waits longer for a token, or for the engine to close, whatever the step took.
_MAX_PAUSE_S = 1.0

Reason = Literal["full", "untold", "cool", "hot", "battery"]


@dataclass(frozen=True)
class Pace:
    """How much of the time an engine computes.

    Attributes:
        share: Over 0, to 1: it never pauses.
        reason: ``full``: told so; ``untold``: the machine tells neither heat nor a battery,
            or has not for a while;
            ``cool``: nothing to spare; ``hot`` and ``battery``: what it is spared for.
        temperature_c: Of what is nearest to its limit, in °C; none where it is not known.
    """

    share: float = 1.0
    reason: Reason = "full"
    temperature_c: float | None = None


PaceReader = Callable[[], Pace]
_FULL = Pace()
_UNTOLD = Pace(reason="untold")


def at_full_pace() -> Pace:
    """Return the pace that never pauses."""
    return _FULL


def at_untold_pace() -> Pace:
    """Return the pace of a machine that tells nothing: it never pauses either."""
    return _UNTOLD


@dataclass(frozen=True)
class PaceRule:
    """The numbers of the rule.

    Attributes:
        band_k: So far below the limit the share begins to fall.
        min_share: At the limit, and over it.
        battery_share: At most so much on a battery that is below ``battery_percent``.
        rise_per_s: The share grows by so much a second at most.
    """

    band_k: float = 10.0
    min_share: float = 0.25
    battery_share: float = 0.7
    battery_percent: float = 50.0
    rise_per_s: float = 0.05


RULE = PaceRule()


def wanted_pace(heat: Heat | None, battery: Battery | None, rule: PaceRule = RULE) -> Pace:
    """Return the pace for a machine as it is now.

    Args:
        heat: Of the zone nearest to its limit; none: not told.
        battery: None: there is none.
        rule: Its numbers.
    """
    for_heat = for_battery = 1.0
    if heat is not None:
        part = min(max(heat.margin_k / rule.band_k, 0.0), 1.0)
        for_heat = rule.min_share + (1.0 - rule.min_share) * part
    # A battery that does not say is taken for one that empties, as where the cloud is asked.
    if battery is not None and not battery.is_charging and battery.percent < rule.battery_percent:
        for_battery = rule.battery_share
    share = min(for_heat, for_battery)
    reason: Reason = "untold" if heat is None and battery is None else "cool"
    if share < 1.0:
        reason = "hot" if for_heat <= for_battery else "battery"
    return Pace(share, reason, heat.temperature_c if heat else None)


def next_pace(before: Pace, wanted: Pace, elapsed_s: float, rule: PaceRule = RULE) -> Pace:
    """Return the pace from now on: lower at once, higher only by and by.

    Args:
        before: Until now.
        wanted: For the machine as it is.
        elapsed_s: Since ``before`` was set.
        rule: Its numbers.
    """
    share = before.share + rule.rise_per_s * elapsed_s
    if share >= wanted.share:
        return wanted
    return Pace(share, before.reason, wanted.temperature_c)


def pause_s(step_s: float, share: float) -> float:
    """Return the seconds to pause after a step, so that it took its share of the time."""
    return min(step_s * (1.0 / share - 1.0), _MAX_PAUSE_S)
