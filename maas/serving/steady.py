"""Tells a deployment that runs from one that only keeps coming back."""

from collections.abc import Hashable


class SteadyState:
    """Remembers since when each deployment looks as it does.

    Kept in memory only: a controller that starts anew just takes longer to call it steady.

    Args:
        after_s: Seconds for which nothing may have changed.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._since: dict[str, tuple[Hashable, float]] = {}

    def is_steady(self, deployment_id: str, facts: Hashable, now: float) -> bool:
        """Say whether these facts have held for long enough.

        Args:
            deployment_id: Which deployment.
            facts: What must not change meanwhile: its replicas, its failures.
            now: Seconds, of any clock that is always the same one.
        """
        known, since = self._since.get(deployment_id, (None, now))
        if known != facts:
            since = now
        self._since[deployment_id] = (facts, since)
        return now - since >= self._after_s

    def forget(self, deployment_id: str) -> None:
        """Note that it does not run: its time starts over."""
        self._since.pop(deployment_id, None)
