"""The controller's process: ``python -m maas.bootstrap.controller SETTINGS_FILE``."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial

import aiohttp

from maas.bootstrap.child import begin
from maas.bootstrap.store import Store, open_store
from maas.catalog.catalog import load_catalog
from maas.core.errors import MaasError
from maas.core.ids import new_id
from maas.core.settings import Settings
from maas.serving.applications import ServeCluster
from maas.serving.cluster import cluster_address
from maas.serving.controller import Reconciler
from maas.serving.leadership import lead
from maas.serving.planner import HostPlanner
from maas.store.secrets import SecretBox

log = logging.getLogger(__name__)

LEASE_NAME = "controller"
_LOST_RAY = 3
_POLL_S = 0.1


async def _wait_for_cluster(settings: Settings) -> str:
    while True:
        address = cluster_address(settings)
        if address is not None:
            return address
        await asyncio.sleep(_POLL_S)


async def _leave_with_cluster(settings: Settings, address: str) -> None:
    """End this process when Ray is gone: calls into a dead Ray hang for a minute."""
    while True:
        await asyncio.sleep(_POLL_S)
        if cluster_address(settings) != address:
            log.warning("Ray at %s is gone; starting over", address)
            os._exit(_LOST_RAY)


async def _reconcile(reconciler: Reconciler, interval_s: float) -> None:
    while True:
        try:
            await reconciler.step()
        except MaasError as error:
            log.error("this pass failed, the next one tries again: %s", error.message)
        await asyncio.sleep(interval_s)


async def _lead(
    settings: Settings, store: Store, make_reconciler: Callable[[], Reconciler]
) -> None:
    holder = new_id("controller")
    serving = settings.serving
    try:
        await lead(
            partial(store.leases.acquire, LEASE_NAME, holder, ttl_s=serving.lease_ttl_s),
            # A new one each time: what it knew of the cluster another may have changed.
            lambda: _reconcile(make_reconciler(), serving.reconcile_interval_s),
            ttl_s=serving.lease_ttl_s,
        )
    finally:
        store.leases.release(LEASE_NAME, holder)


async def run(settings: Settings) -> None:
    """Reconcile until asked to stop."""
    store = open_store(settings)
    cluster = ServeCluster(settings)
    address = await _wait_for_cluster(settings)
    watch = asyncio.create_task(_leave_with_cluster(settings, address))
    await asyncio.to_thread(cluster.connect, address)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as client:
        planner = HostPlanner(
            settings=settings,
            catalog=load_catalog(settings.models_dir),
            replicas=store.replicas,
            secrets=SecretBox(settings.home),
            client=client,
            clock=store.clock,
        )
        make_reconciler = partial(
            Reconciler,
            store.deployments,
            store.replicas,
            cluster=cluster,
            planner=planner,
            clock=store.clock,
            max_backoff_s=settings.serving.max_backoff_s,
        )
        task = asyncio.create_task(_lead(settings, store, make_reconciler))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task
        watch.cancel()


if __name__ == "__main__":
    code = 1
    try:
        asyncio.run(run(begin()))
        code = 0
    finally:
        logging.exception("the controller ends") if code else None
        # Leaving Ray politely takes seconds and nothing is lost by not doing so.
        sys.stderr.flush()
        os._exit(code)
