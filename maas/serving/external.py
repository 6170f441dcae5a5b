"""Engines somebody else runs: asked whether they answer, and listed like any replica."""

import asyncio

import aiohttp

from maas.core.errors import MaasError
from maas.engines.external import resolve_model
from maas.store.records import Deployment, Replica, ReplicaState
from maas.store.replicas import ReplicaRepository
from maas.store.secrets import SecretBox

# Nobody probes while leadership moves from a killed controller to another, and an engine that
# does not answer is withdrawn by whoever sees it: its lease must outlast the controllers' own.
_LEASE_TTLS = 3


async def publish_external(
    deployment: Deployment,
    *,
    replicas: ReplicaRepository,
    secrets: SecretBox,
    client: aiohttp.ClientSession,
    now: float,
    lease_ttl_s: float,
) -> None:
    """Renew the lease of an external engine that answers; withdraw it otherwise.

    Raises:
        EngineError: It does not answer, or does not serve the model.
    """
    url = str(deployment.options["url"])
    replica_id = f"{deployment.id}-external"
    sealed = deployment.options.get("secret")
    headers = {"Authorization": f"Bearer {secrets.open(sealed)}"} if sealed else {}
    try:
        async with aiohttp.ClientSession(
            headers=headers, connector=client.connector, connector_owner=False
        ) as authorized:
            engine_model = await resolve_model(
                authorized,
                url,
                wanted=deployment.model_id,
                engine_model=deployment.options.get("engine_model"),
            )
    except MaasError:
        await asyncio.to_thread(replicas.withdraw, replica_id)
        raise
    lease = Replica(
        id=replica_id,
        deployment_id=deployment.id,
        url=url,
        engine_model=engine_model,
        state=ReplicaState.READY,
        started_at=deployment.created_at,
        expires_at=now + _LEASE_TTLS * lease_ttl_s,
        # Only the operator knows; without it nobody's requests wait for their turn.
        max_num_seqs=int(deployment.options.get("max_num_seqs") or 0),
    )
    await asyncio.to_thread(replicas.publish, lease)
