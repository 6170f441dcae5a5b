"""How often a device may send heartbeats: one that sends without end slows no other down.

Each gateway counts for itself, in memory. The pace is twice the fastest that a group can ask of its
devices, with room for some that come at once; an agent that keeps its pace never meets it.
"""

import time
from collections.abc import Callable

from maas.core.errors import LimitExceeded

INTERVAL_S = 0.5
BURST = 20
_SWEPT_AT_LEAST = 1024


class HeartbeatPace:
    """Lets a device send a heartbeat each ``INTERVAL_S``, and ``BURST`` of them at once.

    Args:
        monotonic: Seconds that only grow.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        # When each device's allowance is whole again.
        self._whole_at: dict[str, float] = {}
        self._sweep_at = _SWEPT_AT_LEAST

    def check(self, key_id: str) -> None:
        """Count a heartbeat; one that is refused does not count.

        Raises:
            LimitExceeded: It comes too early.
        """
        now = self._monotonic()
        whole_at = max(self._whole_at.get(key_id, now), now)
        early_s = whole_at - now - (BURST - 1) * INTERVAL_S
        if early_s > 0:
            raise LimitExceeded(
                f"this device sends heartbeats faster than one in {INTERVAL_S:g} s",
                limit="heartbeats_per_device",
                is_lasting=False,
                retry_after_s=early_s,
            )
        self._whole_at[key_id] = whole_at + INTERVAL_S
        if len(self._whole_at) > self._sweep_at:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Forget devices that were quiet: they may send as those that are new."""
        self._whole_at = {key: at for key, at in self._whole_at.items() if at > now}
        self._sweep_at = max(_SWEPT_AT_LEAST, 2 * len(self._whole_at))
