"""The controller without its cluster: leads, reconciles, stops when asked to.

Apart from ``maas.bootstrap.controller`` so that nothing here loads Ray.
"""

import asyncio
import contextlib
import signal

from maas.bootstrap.store import Store
from maas.core.ids import new_id
from maas.core.settings import Settings
from maas.serving.controller import Cluster, Planner, Reconciler
from maas.serving.leader import GuardedCluster, Leadership


async def reconcile(settings: Settings, store: Store, cluster: Cluster, planner: Planner) -> None:
    """Keep the cluster as the store says while this process leads, until asked to stop."""
    serving = settings.serving
    leadership = Leadership(store.leases, holder=new_id("controller"), ttl_s=serving.lease_ttl_s)

    async def term() -> None:
        reconciler = Reconciler(
            store.deployments,
            store.replicas,
            cluster=GuardedCluster(cluster, leadership),
            planner=planner,
            clock=store.clock,
            max_backoff_s=serving.max_backoff_s,
        )
        await reconciler.run(serving.reconcile_interval_s)

    task = asyncio.create_task(leadership.run(term))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
