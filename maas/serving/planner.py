"""The reconciler's planner on this host: cards, the machine, weights, external engines."""

import asyncio
import dataclasses
from collections.abc import Callable

import aiohttp

from maas.catalog.catalog import Catalog
from maas.catalog.machine import probe_machine
from maas.core.clock import Clock
from maas.core.errors import WeightsError
from maas.core.settings import Settings
from maas.serving.external import publish_external
from maas.serving.plan import DeploymentPlan, make_plan, prepare_weights
from maas.store.records import Deployment
from maas.store.replicas import ReplicaRepository
from maas.store.secrets import SecretBox


@dataclasses.dataclass(frozen=True)
class HostPlanner:
    """Plans against the machine the controller runs on.

    Attributes:
        secrets: Opens the secrets of external engines.
        client: For asking external engines whether they answer.
    """

    settings: Settings
    catalog: Catalog
    replicas: ReplicaRepository
    secrets: SecretBox
    client: aiohttp.ClientSession
    clock: Clock

    def plan(self, deployment: Deployment, *, check_fit: bool) -> DeploymentPlan:
        """Return what to start.

        Raises:
            ModelNotFound: The card is gone.
            ConfigError: The deployment makes no sense, or does not fit (DoesNotFit).
        """
        # A cluster's nodes are not this machine: there the placement decides.
        is_checked = check_fit and self.settings.serving.ray_address is None
        return make_plan(
            deployment,
            self.catalog.get_card(deployment.card_id),
            probe_machine(self.settings.weights_dir),
            # More than the fewest is for the load to ask for: no reason not to start.
            num_to_fit=deployment.min_replicas if is_checked else 0,
        )

    async def prepare(self, plan: DeploymentPlan, report: Callable[[str], None]) -> None:
        """Make the weights ready, reporting progress in words; fast when they are.

        Raises:
            WeightsError: They cannot be had, are damaged, or must not be used.
            DiskFull: No room for them.
        """
        try:
            await asyncio.to_thread(prepare_weights, plan, self.settings, report)
        except OSError as error:
            raise WeightsError(f"the weights of {plan.model_id} cannot be kept: {error}") from error

    async def probe(self, deployment: Deployment) -> None:
        """Publish the lease of an engine that somebody else runs.

        Raises:
            EngineError: It does not answer, or does not serve the model.
        """
        await publish_external(
            deployment,
            replicas=self.replicas,
            secrets=self.secrets,
            client=self.client,
            now=self.clock.now(),
            lease_ttl_s=self.settings.serving.lease_ttl_s,
        )
