"""One leader among several controllers: who holds the lease works, the others wait.

A term is cancelled before its lease runs out, also where the store does not answer any more. A
process that stood still for longer than that (stopped, swapped out) may still be in the middle
of a pass when it goes on: ``Leadership.check`` is asked before each act on the cluster.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from maas.core.errors import MaasError
from maas.serving.controller import Application, Cluster
from maas.serving.plan import DeploymentPlan
from maas.store.leases import LeaseRepository

log = logging.getLogger(__name__)

LEASE_NAME = "controller"
# Of the lease's time: how often it is renewed or asked for, and how long before its end a leader
# that could not renew it stops.
_RENEWALS = 5
_TRIALS = 10
_MARGIN = 0.2


class LeadershipLost(Exception):
    """The lease may be somebody else's by now: stop."""


class Leadership:
    """Holds the controllers' lease while it can.

    Args:
        leases: Where the lease is.
        holder: Name of this process.
        ttl_s: Seconds after which a lease that was not renewed is free.
    """

    def __init__(self, leases: LeaseRepository, *, holder: str, ttl_s: float) -> None:
        self._leases = leases
        self._holder = holder
        self._ttl_s = ttl_s
        self._valid_until = 0.0

    @property
    def is_held(self) -> bool:
        """Whether nobody else can hold the lease now."""
        return time.monotonic() < self._valid_until

    def check(self) -> None:
        """Return if the lease is held.

        Raises:
            LeadershipLost: It may be somebody else's.
        """
        if not self.is_held:
            raise LeadershipLost

    async def run(self, term: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a term whenever the lease is ours, and end it when it is not; for ever.

        Args:
            term: What a leader does; starts from nothing each time.
        """
        try:
            while True:
                if await self._acquire(within_s=self._ttl_s):
                    log.info("%s leads", self._holder)
                    await self._serve(term)
                    log.warning("%s leads no more", self._holder)
                await asyncio.sleep(self._ttl_s / _TRIALS)
        finally:
            self._valid_until = 0.0
            with contextlib.suppress(MaasError):
                await asyncio.to_thread(self._leases.release, LEASE_NAME, self._holder)

    async def _serve(self, term: Callable[[], Coroutine[Any, Any, None]]) -> None:
        work = asyncio.create_task(term())
        try:
            while self.is_held and not work.done():
                await asyncio.wait({work}, timeout=self._ttl_s / _RENEWALS)
                left_s = self._valid_until - time.monotonic()
                if work.done() or left_s <= 0 or await self._acquire(within_s=left_s) is False:
                    break
        finally:
            work.cancel()
            await asyncio.wait({work})
        if not work.cancelled() and not isinstance(work.exception(), LeadershipLost | None):
            work.result()

    async def _acquire(self, *, within_s: float) -> bool | None:
        """Return whether the lease is ours; none where the store did not say."""
        asked_at = time.monotonic()
        asking = asyncio.to_thread(
            self._leases.acquire, LEASE_NAME, self._holder, ttl_s=self._ttl_s
        )
        try:
            is_ours = await asyncio.wait_for(asking, within_s)
        except MaasError as error:
            log.error("the lease of the controllers: %s", error.message)
            return None
        except TimeoutError:
            log.error("the lease of the controllers: the store takes too long")
            return None
        self._valid_until = asked_at + self._ttl_s * (1 - _MARGIN) if is_ours else 0.0
        return is_ours


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
