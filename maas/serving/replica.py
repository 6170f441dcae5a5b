"""One replica: a Ray Serve actor that starts one engine, watches it and publishes its lease.

No request passes through here. Serve places the actor, restarts it when ``check_health``
raises and asks it for its load; gateways find the engine by its lease in the store.
"""

import asyncio
import contextlib
import dataclasses
import logging
import socket
import time

import aiohttp
from ray import serve

from maas.core.errors import EngineError, MaasError
from maas.core.settings import Settings
from maas.engines.contract import EngineLoad
from maas.engines.http import probe
from maas.engines.process import EngineProcess
from maas.engines.registry import get_engine
from maas.engines.watch import HangDetector, observed
from maas.finetune.base_modules import read_base_modules
from maas.serving.adapters import LOOK_EVERY_S, AdapterKeeper, AdapterShelf
from maas.serving.backoff import FIRST_BACKOFF_S, backoff_s
from maas.serving.cpu_share import CpuShare
from maas.serving.drain import drain
from maas.serving.onnx_forms import shelf_for
from maas.serving.plan import DeploymentPlan, plain_weights, prepare_weights
from maas.serving.scaling import load_metrics
from maas.store.adapters import AdapterRepository, TunedModelRepository
from maas.store.blobs import open_blobs
from maas.store.clock import StoreClock
from maas.store.database import Database
from maas.store.deployments import DeploymentRepository
from maas.store.records import Replica, ReplicaState
from maas.store.replicas import ReplicaRepository
from maas.store.state import StateReader

log = logging.getLogger(__name__)

STOP_GRACE_S = 5.0
PROBES_PER_TIMEOUT = 4


def free_port(host: str) -> int:
    """Return a port that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class EngineReplica:
    """Starts, watches and stops one engine.

    Args:
        plan: What to run.
        settings: The platform's settings; the store they name is where the lease goes.
    """

    async def __init__(self, plan: DeploymentPlan, settings: Settings) -> None:  # type: ignore[misc]
        self._plan = plan
        self._serving = settings.serving
        self._adapter = get_engine(plan.engine)
        database = Database(settings.resolved_database_url, settings.store)
        clock = StoreClock(database)
        self._clock = clock
        self._replicas = ReplicaRepository(database, clock)
        self._deployments = DeploymentRepository(database, clock)
        self._hang = HangDetector(timeout_s=settings.serving.hang_timeout_s)
        self._load = EngineLoad()
        self._failure: str | None = None
        self._probe: asyncio.Task[None] | None = None
        self._probed_at = 0.0
        self._is_recorded = False
        self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0))
        self._publishing = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None

        unique = serve.get_replica_context().replica_id.unique_id
        plain = await asyncio.to_thread(plain_weights, plan, settings)
        prepared = await asyncio.to_thread(prepare_weights, plan, settings)
        self._share = CpuShare(
            settings.home / "run" / "cpus",
            plan.deployment_id,
            num_shares=plan.max_replicas if plan.spec.device == "cpu" else 1,
        )
        base = await asyncio.to_thread(read_base_modules, plain.model_dir)
        spec = dataclasses.replace(
            plan.spec,
            lora_modules=base.names if base and plan.spec.max_loras else (),
            cpu_ids=self._share.cpu_ids,
            model_dir=prepared.model_dir,
            port=free_port(plan.spec.host),
            # What engines compile or look up once is kept between starts.
            cache_dir=settings.home / "cache" / plan.engine,
        )
        self._lease = Replica(
            id=f"{plan.deployment_id}-{unique}",
            deployment_id=plan.deployment_id,
            url=spec.url,
            engine_model=self._adapter.engine_model(spec),
            state=ReplicaState.STARTING,
            started_at=clock.now(),
            expires_at=0.0,
            max_num_seqs=spec.max_num_seqs or 0,
        )
        self._engine = EngineProcess(
            self._adapter,
            spec,
            home=settings.home,
            replica_id=self._lease.id,
            log_path=settings.logs_dir / "engines" / f"{self._lease.id}.log",
        )
        tuned_models = TunedModelRepository(database, clock)
        self._keeper = AdapterKeeper(
            plan.model_id,
            engine=self._adapter,
            adapters=AdapterRepository(database, clock),
            shelf=shelf_for(
                plan.engine,
                AdapterShelf(
                    open_blobs(settings),
                    settings.adapters_dir,
                    base=base,
                    max_rank=spec.max_lora_rank,
                ),
                model_dir=plain.model_dir,
                forms_dir=settings.forms_dir,
            ),
            revision=StateReader(database, clock).revision,
            on_held=lambda adapter_id: tuned_models.publish_loaded(
                adapter_id, loaded_by=self._lease.id
            ),
        )
        self._heartbeat = asyncio.create_task(self._beat())
        try:
            await self._start()
        except BaseException as error:
            await self._abandon(error)
            raise

    async def _start(self) -> None:
        deployment = await asyncio.to_thread(self._deployments.get, self._plan.deployment_id)
        # Serve restarts a replica at once; an engine that keeps dying waits longer each time.
        if deployment.num_failures > 1:
            await asyncio.sleep(
                backoff_s(
                    deployment.num_failures,
                    first_s=FIRST_BACKOFF_S,
                    max_s=self._serving.max_backoff_s,
                )
            )
        await self._engine.start()
        await self._engine.wait_ready(self._client, timeout_s=self._serving.start_timeout_s)
        self._lease = dataclasses.replace(self._lease, state=ReplicaState.READY)
        await self._publish()
        if self._plan.spec.max_loras:
            self._keeping = asyncio.create_task(self._keep_adapters())

    async def _keep_adapters(self) -> None:
        """Hold the adapters that are wanted until told to stop; the lease says which."""
        while True:
            try:
                if await self._keeper.keep(self._client, self._lease.url):
                    await self._publish()
            except MaasError as error:
                log.warning("%s: adapters are left as they are: %s", self._lease.id, error.message)
            except Exception:
                # Whatever an adapter does to us, the others go on.
                log.exception("%s: adapters are left as they are", self._lease.id)
            if not self._keeper.is_behind:
                await asyncio.sleep(LOOK_EVERY_S)

    def _stop_tasks(self) -> None:
        for task in (self._heartbeat, self._keeping):
            if task is not None:
                task.cancel()

    async def _abandon(self, error: BaseException) -> None:
        self._stop_tasks()
        await self._engine.stop(grace_s=0.0)
        self._share.release()
        await asyncio.to_thread(self._replicas.withdraw, self._lease.id)
        await self._client.close()
        if isinstance(error, MaasError):
            await asyncio.to_thread(
                self._deployments.record_failure, self._plan.deployment_id, error.message
            )

    async def _beat(self) -> None:
        """Read the engine's load and renew the lease until told to stop."""
        while True:
            try:
                if self._lease.state is not ReplicaState.STARTING:
                    await self._look()
                await self._publish()
            except MaasError as error:
                # A store that is busy or away for a moment is no reason to drop an engine.
                log.warning("%s: heartbeat failed: %s", self._lease.id, error.message)
            await asyncio.sleep(self._serving.heartbeat_interval_s)

    async def _look(self) -> None:
        try:
            self._load = await self._adapter.load(self._client, self._lease.url)
            num_unanswered = int(self._probe_again())
            cpu_s = None
            if self._load.num_tokens_total is None:
                cpu_s = await asyncio.to_thread(self._engine.cpu_seconds)
            held = observed(self._load, num_unanswered=num_unanswered, cpu_s=cpu_s)
            self._hang.saw(held, time.monotonic())
        except EngineError:
            self._hang.missed(time.monotonic())
        if not self._engine.is_alive:
            self._failure = "the engine's process ended"
        elif self._hang.reason:
            self._failure = self._hang.reason

    def _probe_again(self) -> bool:
        """Keep a probe going every few seconds; say whether one is unanswered."""
        now = time.monotonic()
        if self._probe is not None and not self._probe.done():
            return True
        if now - self._probed_at >= self._serving.hang_timeout_s / PROBES_PER_TIMEOUT:
            self._probed_at = now
            self._probe = asyncio.create_task(self._ask_for_one_token())
        return False

    async def _ask_for_one_token(self) -> None:
        with contextlib.suppress(EngineError):
            await probe(
                self._client,
                self._lease.url,
                model=self._lease.engine_model,
                task=self._plan.card.task,
                timeout_s=2 * self._serving.hang_timeout_s,
            )

    async def _publish(self) -> None:
        # One at a time: an older lease must not be written over a newer one.
        async with self._publishing:
            await self._publish_now()

    async def _publish_now(self) -> None:
        # An engine known to be broken lets its lease run out: nobody should be sent there.
        if self._failure:
            await asyncio.to_thread(self._replicas.withdraw, self._lease.id)
            return
        memory_bytes = await asyncio.to_thread(self._engine.memory_bytes)
        # No await from here to the copy: its state may have changed meanwhile.
        self._lease = dataclasses.replace(
            self._lease,
            num_running=self._load.num_running,
            num_waiting=self._load.num_waiting,
            kv_cache_usage=self._load.kv_cache_usage,
            memory_bytes=memory_bytes,
            adapters=self._keeper.held,
            expires_at=self._clock.now() + self._serving.lease_ttl_s,
        )
        await asyncio.to_thread(self._replicas.publish, self._lease)

    async def check_health(self) -> None:
        """Tell Serve whether this replica should live.

        Raises:
            RuntimeError: The engine died or hangs; Serve replaces the replica.
        """
        if self._heartbeat.done():
            # Without heartbeats nobody sends requests here: as good as dead.
            self._failure = "the replica's heartbeat ended"
        if self._failure is None:
            return
        if not self._is_recorded:
            self._is_recorded = True
            await asyncio.to_thread(
                self._deployments.record_failure, self._plan.deployment_id, self._failure
            )
        raise RuntimeError(self._failure)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Report the requests and tokens this engine holds, running and waiting."""
        return load_metrics(self._load)

    async def __del__(self) -> None:
        """Drain, then stop the engine: Serve awaits this before it ends the actor."""
        self._lease = dataclasses.replace(self._lease, state=ReplicaState.DRAINING)
        if self._failure is None:
            await self._publish()
            await drain(
                self._num_held,
                reports_load=self._adapter.capabilities.reports_load,
                timeout_s=self._serving.drain_timeout_s,
            )
        self._stop_tasks()
        await self._engine.stop(grace_s=STOP_GRACE_S)
        self._share.release()
        await asyncio.to_thread(self._replicas.withdraw, self._lease.id)
        await self._client.close()

    async def _num_held(self) -> int | None:
        await self._look()
        return None if self._failure else self._load.num_running + self._load.num_waiting
