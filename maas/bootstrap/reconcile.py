"""The controller without its cluster: leads, reconciles, stops when asked to.

Apart from ``maas.bootstrap.controller`` so that nothing here loads Ray.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from maas.bootstrap.store import Store
from maas.core.errors import MaasError
from maas.core.ids import new_id
from maas.core.settings import Settings
from maas.serving.controller import Cluster, Planner, Reconciler
from maas.serving.leadership import GuardedCluster, Leadership

LEASE_NAME = "controller"


async def reconcile(
    settings: Settings,
    store: Store,
    cluster: Cluster,
    planner: Planner,
    beside: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
) -> None:
    """Keep the cluster as the store says while this process leads, until asked to stop.

    Args:
        settings: The platform's.
        store: What should be.
        cluster: What is.
        planner: Turns deployments into what can run.
        beside: What else the leader does, for ever: jobs, sweeps.
    """
    holder, ttl_s = new_id("controller"), settings.serving.lease_ttl_s
    leadership = Leadership(
        partial(store.leases.acquire, LEASE_NAME, holder, ttl_s=ttl_s), ttl_s=ttl_s
    )

    async def term() -> None:
        # A new one each time: what it knew of the cluster another may have changed.
        reconciler = Reconciler(
            store.deployments,
            store.replicas,
            cluster=GuardedCluster(cluster, leadership),
            planner=planner,
            clock=store.clock,
            max_backoff_s=settings.serving.max_backoff_s,
        )
        async with asyncio.TaskGroup() as passes:
            passes.create_task(reconciler.run(settings.serving.reconcile_interval_s))
            for work in beside:
                passes.create_task(work())

    task = asyncio.create_task(leadership.lead(term))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        with contextlib.suppress(MaasError):
            store.leases.release(LEASE_NAME, holder)
