"""Engines somebody else runs: asked whether they answer, and listed like any replica."""

import asyncio

import aiohttp

from maas.core.errors import EngineError
from maas.engines.http import get_json
from maas.store.records import Deployment, Replica, ReplicaState
from maas.store.replicas import ReplicaRepository
from maas.store.secrets import SecretBox


async def _served_model(client: aiohttp.ClientSession, url: str, deployment: Deployment) -> str:
    """Return the name the engine knows the model by.

    Raises:
        EngineUnreachable: It does not answer.
        EngineError: It serves several models and none has this name.
    """
    wanted = deployment.options.get("engine_model") or deployment.model_id
    page = await get_json(client, f"{url}/v1/models")
    served = [str(entry["id"]) for entry in page.get("data", [])]
    if wanted in served:
        return wanted
    if len(served) == 1 and "engine_model" not in deployment.options:
        return served[0]
    raise EngineError(
        f"{url} does not serve {wanted!r}; it serves: {', '.join(served) or 'nothing'}; "
        "name one with -o engine_model=NAME"
    )


async def publish_external(  # noqa: PLR0913 - the lease's parts come from as many places
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
            engine_model = await _served_model(authorized, url, deployment)
    except EngineError:
        await asyncio.to_thread(replicas.withdraw, replica_id)
        raise
    lease = Replica(
        id=replica_id,
        deployment_id=deployment.id,
        url=url,
        engine_model=engine_model,
        state=ReplicaState.READY,
        started_at=deployment.created_at,
        expires_at=now + lease_ttl_s,
    )
    await asyncio.to_thread(replicas.publish, lease)
