"""Deployments as Ray Serve applications: one application, one Serve deployment, n replicas.

The Serve deployment carries its plan's digest as its version, so applying a plan that runs
already restarts nothing, and a changed number of replicas only scales.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from maas.core.settings import Settings
from maas.serving import autoscaling
from maas.serving.controller import Application, ApplicationState
from maas.serving.plan import DeploymentPlan
from maas.serving.replica import EngineReplica

log = logging.getLogger(__name__)

HEALTH_CHECK_PERIOD_S = 2.0
_STATES = {
    ApplicationStatus.NOT_STARTED: ApplicationState.DEPLOYING,
    ApplicationStatus.DEPLOYING: ApplicationState.DEPLOYING,
    ApplicationStatus.RUNNING: ApplicationState.RUNNING,
    ApplicationStatus.UNHEALTHY: ApplicationState.UNHEALTHY,
    ApplicationStatus.DEPLOY_FAILED: ApplicationState.FAILED,
    ApplicationStatus.DELETING: ApplicationState.DELETING,
}


def _application(overview: ApplicationStatusOverview) -> Application:
    messages = [overview.message, *(d.message for d in overview.deployments.values())]
    return Application(
        state=_STATES[overview.status],
        message=next((message for message in messages if message), "").strip()[-1000:],
    )


class ServeCluster:
    """The cluster behind the reconciler: Ray Serve without its HTTP proxies."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def connect(self, address: str) -> None:
        """Connect to Ray and start Serve where it does not run yet; blocks for seconds."""
        ray.init(address=address, namespace="maas", log_to_driver=False)
        serve.start(proxy_location="Disabled")

    async def applications(self) -> Mapping[str, Application]:
        """Return what runs, by deployment id."""
        status = await asyncio.to_thread(serve.status)
        return {name: _application(overview) for name, overview in status.applications.items()}

    async def apply(self, plan: DeploymentPlan) -> None:
        """Make Serve run this plan; applying it twice changes nothing."""
        log.info("applying %s (%s replicas)", plan.deployment_id, plan.num_replicas_text)
        deployment = serve.deployment(
            name="engine",
            ray_actor_options={
                "num_cpus": 0,
                "num_gpus": plan.num_gpus,
                "memory": plan.memory_bytes,
            },
            # One try: a second start of what just failed is the reconciler's to pace.
            max_constructor_retry_count=1,
            health_check_period_s=HEALTH_CHECK_PERIOD_S,
            health_check_timeout_s=30.0,
            graceful_shutdown_timeout_s=self._settings.serving.drain_timeout_s + 15.0,
            graceful_shutdown_wait_loop_s=0.1,
            **self._scaling(plan),
        )(EngineReplica)
        # Without a version Serve takes every apply for new code and restarts all replicas. Its
        # public option was removed in 2.5x; what it set is still there (docs/adr/0003).
        deployment = deployment.options(_internal=True, version=plan.digest)
        target = serve.RunTarget(
            target=deployment.bind(plan, self._settings),
            name=plan.deployment_id,
            route_prefix=None,
        )
        await asyncio.to_thread(serve.run_many, [target], wait_for_applications_running=False)

    async def delete(self, deployment_id: str) -> None:
        """Drain and stop an application; returns before it is gone."""
        log.info("deleting %s", deployment_id)
        await asyncio.to_thread(serve.delete, deployment_id, _blocking=False)

    @staticmethod
    def _scaling(plan: DeploymentPlan) -> dict[str, Any]:
        # Also where the bounds are equal: a replica that started without it never reports its
        # load, so the deployment could not be given other bounds later.
        return {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=plan.min_replicas,
                max_replicas=plan.max_replicas,
                target_ongoing_requests=plan.target_ongoing_requests,
                look_back_period_s=15.0,
                upscale_delay_s=2.0,
                downscale_delay_s=60.0,
                policy=AutoscalingPolicy(policy_function=autoscaling.scale_on_engine_load),
            )
        }
