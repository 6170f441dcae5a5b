"""``maas status``: what runs, on what, how busy it is."""

import asyncio
import os
import time
from dataclasses import asdict
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from maas.bootstrap import Store, open_store, resolve_settings
from maas.cli.output import JsonFlag, emit
from maas.core.settings import Settings
from maas.store.records import Deployment, DeploymentStatus, Replica, ReplicaState

_TROUBLED = {DeploymentStatus.REFUSED, DeploymentStatus.FAILED}
_TIMEOUT = aiohttp.ClientTimeout(total=2.0)


async def _gateway_answers(settings: Settings) -> bool:
    url = f"{settings.gateway_url}/healthz"
    try:
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as client, client.get(url) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def _is_ready(deployment: Deployment, replicas: list[Replica]) -> bool:
    """Say whether a deployment answers as it should; one on its way out need not."""
    if deployment.deleted_at is not None:
        return True
    if deployment.status is DeploymentStatus.REFUSED:
        return False
    ready = [replica for replica in replicas if replica.state is ReplicaState.READY]
    return len(ready) >= deployment.min_replicas


def read_status(settings: Settings, store: Store) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    live = store.replicas.live()
    deployments: list[dict[str, Any]] = []
    is_ready = gateway = asyncio.run(_gateway_answers(settings))
    for deployment in store.deployments.list():
        mine = [replica for replica in live if replica.deployment_id == deployment.id]
        is_ready = is_ready and _is_ready(deployment, mine)
        fields = asdict(deployment)
        fields["options"] = {k: v for k, v in deployment.options.items() if k != "secret"}
        deployments.append({**fields, "replicas": [asdict(replica) for replica in mine]})
    return {
        "ready": is_ready,
        "gateway": {"url": settings.gateway_url, "answers": gateway},
        "load_average": os.getloadavg()[0],
        "deployments": deployments,
    }


def _render(status: dict[str, Any], console: Console) -> None:
    gateway = status["gateway"]
    console.print(f"gateway  {gateway['url']}  {'answers' if gateway['answers'] else 'is down'}")
    table = Table(
        "model", "engine", "status", "replica", "running", "waiting", "KV", "memory", "up"
    )
    now = time.time()
    for item in status["deployments"]:
        first = [item["model_id"], item["engine"], item["status"]]
        if not item["replicas"]:
            table.add_row(*first, item["reason"] or "", *[""] * 5)
        for replica in item["replicas"]:
            table.add_row(
                *first,
                f"{replica['id'].rpartition('-')[2]} {replica['state']} {replica['url']}",
                str(replica["num_running"]),
                str(replica["num_waiting"]),
                f"{replica['kv_cache_usage']:.0%}",
                f"{replica['memory_bytes'] / 2**30:.2f} GiB",
                f"{now - replica['started_at']:.0f} s",
            )
    console.print(table)
    for item in status["deployments"]:
        # In full and outside of the table, whose columns cut it: it says what to change.
        if item["status"] in _TROUBLED and item["reason"]:
            console.print(f"{item['status']}  {item['model_id']}: ", style="bold red", end="")
            console.print(item["reason"], markup=False, highlight=False, soft_wrap=True)
    console.print("ready" if status["ready"] else "not ready yet", style="bold")


def status(as_json: JsonFlag = False) -> None:
    """Show deployments, replicas, load and memory."""
    settings = resolve_settings()
    result = read_status(settings, open_store(settings))
    emit(result, as_json=as_json, render=lambda console: _render(result, console))
