"""Leading: one controller acts at a time, and only while its lease is surely its own.

A process that stood still (stopped, swapped out) may be in the middle of a pass when it goes on:
``Leadership.check`` is asked before each act on the cluster.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from maas.core.errors import MaasError
from maas.serving.controller import Application, Cluster
from maas.serving.plan import DeploymentPlan

log = logging.getLogger(__name__)

_RENEWALS_PER_TTL = 5
# How often one who does not lead asks: what a killed leader's follower adds to its lease.
_TRIALS_PER_TTL = 10


class LeadershipLost(Exception):
    """The lease may be somebody else's by now."""


class Leadership:
    """The right to act, while the lease is held.

    Args:
        acquire: Takes or renews the lease, in a thread; false where another one holds it. The
            store may be away for a moment: a ``MaasError`` is no answer.
        ttl_s: How long one renewal lasts.
    """

    def __init__(self, acquire: Callable[[], bool], *, ttl_s: float) -> None:
        self._acquire = acquire
        self._ttl_s = ttl_s
        self._expires = 0.0

    def check(self) -> None:
        """Return if the lease is surely ours.

        Raises:
            LeadershipLost: It may be somebody else's.
        """
        if time.monotonic() >= self._expires:
            raise LeadershipLost

    async def lead(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work`` whenever this process leads, for ever; cancel it the moment it may not.

        The lease is renewed beside the work, so a pass that takes longer than the lease loses
        nothing. A call already handed to a thread when the lease is lost runs to its end; nothing
        is begun after it.

        Args:
            work: Acts until cancelled. Called anew each time the lease is won.
        """
        try:
            while True:
                if await self._ask(timeout_s=self._ttl_s):
                    await self._serve(work)
                    log.warning("leadership is lost: another controller acts, or the store is away")
                await asyncio.sleep(self._ttl_s / _TRIALS_PER_TTL)
        finally:
            self._expires = 0.0

    async def _serve(self, work: Callable[[], Awaitable[None]]) -> None:
        log.info("this controller leads")
        working = asyncio.ensure_future(work())
        try:
            await self._keep(working)
        except LeadershipLost:
            return
        finally:
            working.cancel()
            await asyncio.wait({working})

    async def _keep(self, working: asyncio.Future[None]) -> None:
        """Return when the lease is lost or may be. What the work raises is raised here."""
        while (left_s := self._expires - time.monotonic()) > 0:
            await asyncio.wait({working}, timeout=min(self._ttl_s / _RENEWALS_PER_TTL, left_s))
            if working.done():
                working.result()
                return
            left_s = self._expires - time.monotonic()
            if left_s <= 0 or await self._ask(timeout_s=left_s) is False:
                return

    async def _ask(self, *, timeout_s: float) -> bool | None:
        """Return whether the lease is held; none where nobody can tell."""
        # Counted from before the question: the store's own count starts later.
        asked = time.monotonic()
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that meets the answer.
            async with asyncio.timeout(timeout_s):
                is_held = await asyncio.to_thread(self._acquire)
        except TimeoutError:
            log.warning("the store did not answer for %.1f s", timeout_s)
            return None
        except MaasError as error:
            log.warning("the lease could not be renewed: %s", error.message)
            return None
        self._expires = asked + self._ttl_s if is_held else 0.0
        return is_held


class GuardedCluster:
    """A cluster that only the leader changes.

    Args:
        cluster: What is changed.
        leadership: Asked before each change.
    """

    def __init__(self, cluster: Cluster, leadership: Leadership) -> None:
        self._cluster = cluster
        self._leadership = leadership

    async def applications(self) -> Mapping[str, Application]:
        """Return what runs, by deployment id."""
        return await self._cluster.applications()

    async def apply(self, plan: DeploymentPlan) -> None:
        """Make the cluster run this plan."""
        self._leadership.check()
        await self._cluster.apply(plan)

    async def delete(self, deployment_id: str) -> None:
        """Drain and stop a deployment."""
        self._leadership.check()
        await self._cluster.delete(deployment_id)
