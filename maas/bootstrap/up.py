"""``maas up``: checks the machine, starts every process, says when it is ready, stops it all."""

import asyncio
import fcntl
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
import psutil

from maas.bootstrap.deployments import create_deployment
from maas.bootstrap.keys import ensure_admin_key, has_admin_key
from maas.bootstrap.signing import prepare_signing
from maas.bootstrap.store import Store, open_store, save_settings
from maas.catalog.card import ModelCard
from maas.catalog.catalog import load_catalog
from maas.core.errors import AlreadyRunning, MaasError
from maas.core.host import check_disk, check_port
from maas.core.settings import Settings
from maas.engines.orphans import kill_orphans
from maas.engines.prepare import folder_name, verify_model
from maas.serving.cluster import address_file, ensure_token, ray_environment
from maas.serving.jobs.stopping import let_rest
from maas.serving.options import parse_options
from maas.serving.supervisor import ProcessSpec, Supervisor
from maas.store.records import Deployment, DeploymentStatus, Replica, ReplicaState

log = logging.getLogger(__name__)

MIN_DISK_BYTES = 512 * 2**20
_POLL_S = 0.1


@dataclass(frozen=True)
class Progress:
    """Where the start is.

    Attributes:
        waiting_for: What comes next, in words; empty when everything answers.
        seconds: Since the start.
        memory_bytes: Of all processes of the platform together.
        refused: Deployments that cannot run here, with their reasons; not waited for.
        chat_model: A model that answers chats now.
    """

    waiting_for: str
    seconds: float
    memory_bytes: int
    refused: tuple[str, ...] = ()
    chat_model: str | None = None

    @property
    def is_ready(self) -> bool:
        """Whether everything answers."""
        return not self.waiting_for


@contextmanager
def _exclusive(settings: Settings) -> Generator[None]:
    """Hold ``MAAS_HOME`` for this process.

    Raises:
        AlreadyRunning: Another platform holds it.
    """
    run_dir = settings.home / "run"
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(run_dir / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise AlreadyRunning(
            f"a platform already runs on {settings.home}; stop it first, or set MAAS_HOME"
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


def _prepare(settings: Settings) -> Store:
    """Check the machine and make state: all that can fail with one clear line."""
    check_disk(settings.home, need_bytes=MIN_DISK_BYTES)
    check_port(settings.host, settings.port, setting="MAAS_PORT")
    check_port("127.0.0.1", settings.metrics_port, setting="MAAS_METRICS_PORT")
    store = open_store(settings)
    ensure_token(settings)
    address_file(settings).unlink(missing_ok=True)
    if settings.serving.ray_address is None:
        # The last run's engines are gone; a lease of theirs would be a promise nobody keeps.
        store.replicas.clear_local()
        # Refusals and failures of the last run say nothing of this one.
        store.deployments.try_again()
    # The key last: a first start that was refused is still the first one next time.
    is_first_start = not has_admin_key(settings, store)
    if is_first_start and settings.model is not None and not store.deployments.list():
        create_deployment(
            settings, store, model_id=settings.model, engine=settings.engine, options={}
        )
    ensure_admin_key(settings, store)
    # Before the gateway listens: it tells the key to devices that enrol.
    prepare_signing(settings, store)
    _check_weights(settings, store)
    return store


def _check_weights(settings: Settings, store: Store) -> None:
    """Find damaged weights now, in one line, and not in an engine's log later.

    Raises:
        WeightsCorrupt: Prepared weights differ from what was recorded of them.
    """
    catalog = load_catalog(settings.models_dir)
    for deployment in store.deployments.list():
        card = catalog.get(deployment.model_id)
        if deployment.engine == "external" or card is None:
            continue
        form = parse_options(dict(deployment.options)).quantization
        if (settings.weights_dir / folder_name(card, form)).exists():
            verify_model(card, weights_dir=settings.weights_dir, quantization=form)


def _specs(settings: Settings) -> list[ProcessSpec]:
    settings_file = str(save_settings(settings))
    ray = ray_environment(settings)
    gateway = ProcessSpec("gateway", ["maas.bootstrap.gateway", settings_file])
    controller = ProcessSpec("controller", ["maas.bootstrap.controller", settings_file], ray)
    head = ProcessSpec(
        "ray",
        ["maas.bootstrap.head", settings_file],
        ray,
        stop_timeout_s=6.0,
        # A Ray that was killed leaves engines behind that hold ports and memory.
        before_start=lambda: kill_orphans(settings.home),
    )
    uses_local_ray = settings.serving.ray_address is None
    return [head, controller, gateway] if uses_local_ray else [controller, gateway]


def platform_memory_bytes() -> int:
    """Return the memory of this process and everything under it: proportional set size."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total


def _unready(deployments: tuple[Deployment, ...], live: tuple[Replica, ...]) -> str:
    """Say which deployment is not up yet; one that was refused is not waited for.

    A status alone would do for a first start only: it is what the last run left.
    """
    ready = Counter(item.deployment_id for item in live if item.state is ReplicaState.READY)
    for deployment in deployments:
        is_waited_for = (
            deployment.deleted_at is None and deployment.status is not DeploymentStatus.REFUSED
        )
        if is_waited_for and ready[deployment.id] < deployment.min_replicas:
            is_stale = deployment.status is DeploymentStatus.RUNNING
            status = DeploymentStatus.STARTING if is_stale else deployment.status
            return f"{deployment.model_id}: {deployment.reason or status}"
    return ""


def _refused(deployments: tuple[Deployment, ...]) -> tuple[str, ...]:
    """Say which deployments cannot run here, and why."""
    return tuple(
        f"{deployment.model_id}: {deployment.reason}"
        for deployment in deployments
        if deployment.deleted_at is None and deployment.status is DeploymentStatus.REFUSED
    )


def _can_chat(card: ModelCard | None) -> bool:
    # What an external engine serves need not be in the catalogue.
    return card is None or (card.task == "generate" and card.chat_template is not None)


def _chat_model(
    deployments: tuple[Deployment, ...],
    live: tuple[Replica, ...],
    catalog: Mapping[str, ModelCard],
    *,
    preferred: str | None,
) -> str | None:
    """Return a model that answers chats now, the preferred one if it does."""
    ready = {item.deployment_id for item in live if item.state is ReplicaState.READY}
    found = [
        deployment.model_id
        for deployment in deployments
        if deployment.deleted_at is None
        and deployment.id in ready
        and _can_chat(catalog.get(deployment.model_id))
    ]
    return preferred if preferred in found else next(iter(found), None)


async def _gateway_answers(client: aiohttp.ClientSession, settings: Settings) -> bool:
    try:
        async with client.get(f"{settings.gateway_url}/healthz") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _watch(settings: Settings, store: Store, report: Callable[[Progress], None]) -> None:
    """Report progress until everything answers."""
    started = time.monotonic()
    catalog = load_catalog(settings.models_dir)
    deployments: tuple[Deployment, ...] = ()
    live: tuple[Replica, ...] = ()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as client:
        while True:
            if not await _gateway_answers(client, settings):
                waiting_for = "the gateway"
            else:
                deployments = await asyncio.to_thread(store.deployments.list)
                live = await asyncio.to_thread(store.replicas.live)
                waiting_for = _unready(deployments, live)
                if waiting_for and not address_file(settings).exists():
                    waiting_for = "Ray"
            memory_bytes = await asyncio.to_thread(platform_memory_bytes)
            progress = Progress(
                waiting_for,
                time.monotonic() - started,
                memory_bytes,
                refused=_refused(deployments),
                chat_model=_chat_model(deployments, live, catalog, preferred=settings.model),
            )
            report(progress)
            if progress.is_ready:
                return
            await asyncio.sleep(_POLL_S)


async def _let_jobs_rest(settings: Settings, store: Store) -> None:
    try:
        await asyncio.to_thread(let_rest, store.jobs, settings.finetune.stop_timeout_s)
    except MaasError as error:
        log.warning("jobs were not asked to keep a checkpoint: %s", error.message)


async def run_up(settings: Settings, report: Callable[[Progress], None]) -> None:
    """Start the platform and stay until SIGINT or SIGTERM; then stop all of it.

    Args:
        settings: The platform's settings.
        report: Called often until everything answers.

    Raises:
        HostError: A port is taken, the disk is full, or a platform runs here already.
    """
    with _exclusive(settings):
        kill_orphans(settings.home)
        store = _prepare(settings)
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopping.set)
        supervisor = Supervisor(_specs(settings), settings.logs_dir)
        supervisor.start()
        watching = asyncio.create_task(_watch(settings, store, report))
        try:
            await stopping.wait()
        finally:
            watching.cancel()
            await _let_jobs_rest(settings, store)
            await supervisor.stop()
            kill_orphans(settings.home)
