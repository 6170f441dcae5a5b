"""The reconciler: makes the cluster match the deployments in the store, again and again.

Nothing is remembered between passes that a restart would miss: desired state is in the
store, what runs is asked of the cluster, and applying the same plan twice changes nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Protocol

from maas.core.clock import Clock
from maas.core.errors import ConfigError, MaasError
from maas.serving.backoff import FIRST_BACKOFF_S, backoff_s
from maas.serving.plan import DeploymentPlan
from maas.serving.steady import SteadyState
from maas.store.deployments import DeploymentRepository
from maas.store.records import Deployment, DeploymentStatus, Replica, ReplicaState
from maas.store.replicas import ReplicaRepository

log = logging.getLogger(__name__)

# Failures are forgiven after this long without one: an engine that starts, answers and dies a
# few seconds later fails just as one that never starts.
STABLE_AFTER_S = 60.0
REFUSED_RETRY_S = 30.0


class ApplicationState(StrEnum):
    """What the cluster says of an application."""

    DEPLOYING = "deploying"
    RUNNING = "running"
    UNHEALTHY = "unhealthy"
    FAILED = "failed"
    DELETING = "deleting"


@dataclass(frozen=True)
class Application:
    """A deployment as the cluster sees it."""

    state: ApplicationState
    message: str = ""


class Cluster(Protocol):
    """What the reconciler needs of Ray Serve."""

    async def applications(self) -> Mapping[str, Application]:
        """Return what runs, by deployment id."""
        ...

    async def apply(self, plan: DeploymentPlan) -> None:
        """Make the cluster run this plan; applying it twice changes nothing."""
        ...

    async def delete(self, deployment_id: str) -> None:
        """Drain and stop a deployment; returns before it is gone."""
        ...


class Planner(Protocol):
    """What turns a deployment into something that can run."""

    def plan(self, deployment: Deployment, *, check_fit: bool) -> DeploymentPlan:
        """Return what to start.

        Raises:
            ConfigError: The deployment makes no sense, or does not fit (DoesNotFit).
        """
        ...

    async def prepare(self, plan: DeploymentPlan, report: Callable[[str], None]) -> None:
        """Make the weights ready, reporting progress in words; fast when they are."""
        ...

    async def probe(self, deployment: Deployment) -> None:
        """Publish the lease of an engine that somebody else runs.

        Raises:
            EngineError: It does not answer.
        """
        ...


class Reconciler:
    """Makes the cluster match the store, one pass at a time.

    Args:
        deployments: What should run.
        replicas: What is alive.
        cluster: Where it runs.
        planner: Says how.
        clock: For backoff.
        max_backoff_s: Longest pause between two starts of a deployment that fails.
    """

    def __init__(
        self,
        deployments: DeploymentRepository,
        replicas: ReplicaRepository,
        *,
        cluster: Cluster,
        planner: Planner,
        clock: Clock,
        max_backoff_s: float,
    ) -> None:
        self._deployments = deployments
        self._replicas = replicas
        self._cluster = cluster
        self._planner = planner
        self._clock = clock
        self._max_backoff_s = max_backoff_s
        self._applied: dict[str, DeploymentPlan] = {}
        self._preparing: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, str] = {}
        self._steady = SteadyState(max(STABLE_AFTER_S, max_backoff_s))

    async def run(self, interval_s: float) -> None:
        """Run passes until cancelled; one that fails does not keep the next from its turn."""
        try:
            while True:
                try:
                    await self.step()
                except MaasError as error:
                    log.error("this pass failed, the next one tries again: %s", error.message)
                await asyncio.sleep(interval_s)
        finally:
            for task in self._preparing.values():
                task.cancel()

    async def step(self) -> None:
        """Run one pass. A deployment that fails does not keep the others from their turn."""
        wanted = await asyncio.to_thread(self._deployments.list)
        await asyncio.to_thread(self._replicas.sweep)
        live = await asyncio.to_thread(self._replicas.live)
        applications = await self._cluster.applications()
        for deployment in wanted:
            replicas = [replica for replica in live if replica.deployment_id == deployment.id]
            application = applications.get(deployment.id)
            try:
                await self._reconcile(deployment, application, replicas)
            except MaasError as error:
                await self._failed(deployment, error)
        for stray in applications.keys() - {deployment.id for deployment in wanted}:
            await self._cluster.delete(stray)

    async def _reconcile(
        self, deployment: Deployment, application: Application | None, replicas: list[Replica]
    ) -> None:
        if deployment.deleted_at is not None:
            await self._remove(deployment, application)
        elif (deployment.retry_at or 0.0) > self._clock.now():
            return
        elif deployment.engine == "external":
            await self._planner.probe(deployment)
            # Asking again costs nothing: one answer forgives what was before.
            is_forgiven = deployment.num_failures > 0
            await self._observe(deployment, DeploymentStatus.RUNNING, is_forgiven=is_forgiven)
        elif application is not None and application.state is ApplicationState.FAILED:
            await self._restart_later(deployment, application)
        else:
            await self._keep_applied(deployment, application, replicas)

    async def _keep_applied(
        self, deployment: Deployment, application: Application | None, replicas: list[Replica]
    ) -> None:
        """Apply the plan where it is not, or differs; otherwise write down how it fares."""
        if application is not None and application.state is ApplicationState.DELETING:
            return
        ready = [replica for replica in replicas if replica.state is ReplicaState.READY]
        applied = self._applied.get(deployment.id)
        is_current = applied is not None and applied.matches(deployment)
        if application is None or not is_current:
            # A running application was checked when it started; its own memory would count
            # against it now.
            await self._apply(deployment, check_fit=application is None)
        elif len(ready) >= deployment.min_replicas:
            await self._observe_running(deployment, replicas)
        elif ready or application.state is ApplicationState.UNHEALTHY:
            have = f"{len(ready)} of {deployment.min_replicas} replicas ready"
            await self._observe(deployment, DeploymentStatus.DEGRADED, have)
        else:
            await self._observe(
                deployment, DeploymentStatus.STARTING, application.message or "starting the engine"
            )

    async def _apply(self, deployment: Deployment, *, check_fit: bool) -> None:
        plan = self._planner.plan(deployment, check_fit=check_fit)
        task = self._preparing.get(deployment.id)
        if task is None:
            report = partial(self._progress.__setitem__, deployment.id)
            task = asyncio.create_task(self._planner.prepare(plan, report))
            self._preparing[deployment.id] = task
            # Weights that are ready take milliseconds: no need to wait for another pass.
            await asyncio.wait({task}, timeout=0.5)
        if not task.done():
            progress = self._progress.get(deployment.id, "preparing the weights")
            await self._observe(deployment, DeploymentStatus.STARTING, progress)
            return
        del self._preparing[deployment.id]
        task.result()
        await self._cluster.apply(plan)
        self._applied[deployment.id] = plan
        await self._observe(deployment, DeploymentStatus.STARTING, "starting the engine")

    async def _remove(self, deployment: Deployment, application: Application | None) -> None:
        self._applied.pop(deployment.id, None)
        self._steady.forget(deployment.id)
        task = self._preparing.pop(deployment.id, None)
        if task is not None:
            task.cancel()
        if application is None:
            await asyncio.to_thread(self._deployments.forget, deployment.id)
        elif application.state is not ApplicationState.DELETING:
            await self._cluster.delete(deployment.id)

    async def _restart_later(self, deployment: Deployment, application: Application) -> None:
        """Take a failed application away; it comes back after its pause."""
        self._applied.pop(deployment.id, None)
        await self._cluster.delete(deployment.id)
        # The replica wrote down that it failed and why, in better words than the cluster's,
        # perhaps only since this pass began.
        latest = await asyncio.to_thread(self._deployments.get, deployment.id)
        reason = latest.reason or application.message
        await self._postpone(deployment, DeploymentStatus.FAILED, reason, latest.num_failures)

    async def _failed(self, deployment: Deployment, error: MaasError) -> None:
        """Try again later what failed here, before any replica was there to count it."""
        if isinstance(error, ConfigError):
            await self._postpone(deployment, DeploymentStatus.REFUSED, error.message, 0)
            return
        num_failures = await asyncio.to_thread(
            self._deployments.record_failure, deployment.id, error.message
        )
        await self._postpone(deployment, DeploymentStatus.FAILED, error.message, num_failures)

    async def _postpone(
        self, deployment: Deployment, status: DeploymentStatus, reason: str, num_failures: int
    ) -> None:
        log.warning("deployment %s: %s", deployment.id, reason)
        is_refused = status is DeploymentStatus.REFUSED
        pause = backoff_s(num_failures, first_s=FIRST_BACKOFF_S, max_s=self._max_backoff_s)
        await asyncio.to_thread(
            self._deployments.postpone,
            deployment.id,
            status=status,
            reason=reason,
            retry_at=self._clock.now() + (REFUSED_RETRY_S if is_refused else pause),
        )

    async def _observe_running(self, deployment: Deployment, replicas: list[Replica]) -> None:
        """Write down that it runs; forgive its failures once it has for long enough."""
        if deployment.num_failures == 0:
            await self._observe(deployment, DeploymentStatus.RUNNING)
            return
        if any(replica.state is ReplicaState.STARTING for replica in replicas):
            # Perhaps the one that keeps failing, beside others that are well.
            self._steady.forget(deployment.id)
        facts = (frozenset(replica.id for replica in replicas), deployment.num_failures)
        is_steady = self._steady.is_steady(deployment.id, facts, self._clock.now())
        await self._observe(deployment, DeploymentStatus.RUNNING, is_forgiven=is_steady)

    async def _observe(
        self,
        deployment: Deployment,
        status: DeploymentStatus,
        reason: str | None = None,
        *,
        is_forgiven: bool = False,
    ) -> None:
        if status is not DeploymentStatus.RUNNING:
            self._steady.forget(deployment.id)
        is_known = (deployment.status, deployment.reason) == (status, reason)
        if is_known and deployment.retry_at is None and not is_forgiven:
            return
        await asyncio.to_thread(
            self._deployments.observe,
            deployment.id,
            status=status,
            reason=reason,
            seen_failures=deployment.num_failures,
            is_forgiven=is_forgiven,
        )
