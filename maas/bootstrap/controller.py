"""The controller's process: ``python -m maas.bootstrap.controller SETTINGS_FILE``."""

import asyncio
import logging
import os
import sys
from functools import partial

import aiohttp

from maas.bootstrap.child import begin
from maas.bootstrap.export_queue import make_export_queue
from maas.bootstrap.fleet import make_fleet_keeper
from maas.bootstrap.jobs import make_queue, make_sweeps
from maas.bootstrap.reconcile import reconcile
from maas.bootstrap.signing import prepare_signing
from maas.bootstrap.storage import make_keeper
from maas.bootstrap.store import open_store
from maas.catalog.catalog import load_catalog
from maas.core.settings import Settings
from maas.serving.applications import ServeCluster
from maas.serving.cluster import cluster_address
from maas.serving.jobs.runners import RayRunners
from maas.serving.jobs.sweeper import keep_sweeping
from maas.serving.planner import HostPlanner
from maas.store.secrets import SecretBox

log = logging.getLogger(__name__)

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


async def run(settings: Settings) -> None:
    """Reconcile until asked to stop."""
    store = open_store(settings)
    prepare_signing(settings, store)
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
        runners = RayRunners(settings)
        queue = make_queue(settings, runners, runners.free_gpus)
        exports = make_export_queue(settings, store)
        fleet = make_fleet_keeper(settings, store)
        keeper = make_keeper(settings, store)
        beside = [
            partial(queue.run, settings.serving.reconcile_interval_s),
            partial(exports.run, settings.serving.reconcile_interval_s),
            partial(fleet.run, settings.serving.reconcile_interval_s),
            partial(keeper.run, settings.serving.sweep_interval_s),
            *(
                partial(keep_sweeping, sweep, settings.serving.sweep_interval_s)
                for sweep in make_sweeps(settings)
            ),
        ]
        await reconcile(settings, store, cluster, planner, beside)
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
