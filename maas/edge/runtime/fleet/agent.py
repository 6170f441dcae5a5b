"""The agent: a server for this device's programs, and beside it the fleet's errands."""

import asyncio
import fcntl
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from maas.core.errors import AlreadyRunning, ConfigError
from maas.edge.runtime.battery import BatteryReader, read_battery
from maas.edge.runtime.engine.options import EngineOptions
from maas.edge.runtime.fleet.gateway import Gateway
from maas.edge.runtime.fleet.heartbeats import Heartbeats
from maas.edge.runtime.fleet.identity import read_identity
from maas.edge.runtime.fleet.reports import Reporter
from maas.edge.runtime.fleet.seat import Loader, Seat, bring_up
from maas.edge.runtime.fleet.sender import Sender
from maas.edge.runtime.fleet.state import StateFile
from maas.edge.runtime.fleet.telemetry import BatteryGauge
from maas.edge.runtime.fleet.updates import Updater
from maas.edge.runtime.fleet.wire import HeartbeatAnswer
from maas.edge.runtime.server.app import EdgeServer
from maas.edge.runtime.server.cloud import Cloud
from maas.edge.runtime.server.counters import Counters
from maas.edge.runtime.server.fallback import Fallback
from maas.edge.runtime.server.guard import Guard
from maas.edge.runtime.server.offline import OfflineQueue
from maas.edge.runtime.server.queued import add_queue_routes
from maas.edge.runtime.server.serve import Address, listening, stop_when_told
from maas.edge.runtime.server.served import Serving
from maas.edge.runtime.shelf.shelf import Shelf
from maas.edge.runtime.shelf.sources import HttpSource

log = logging.getLogger(__name__)

_MAX_RETRY_S = 5.0


@dataclass(frozen=True)
class AgentSettings:
    """How an agent runs.

    Attributes:
        home: The device's folder.
        address: Where its server listens.
        options: Of engines.
        served_model_name: On the wire; none: each bundle's own.
        uses_cloud: Whether requests may go to the gateway.
        min_battery_percent: Below it they do.
        read_battery: Reads the battery.
        allowed_origins: Of web pages that may ask its server.
    """

    home: Path
    address: Address
    options: EngineOptions
    served_model_name: str | None = None
    uses_cloud: bool = True
    min_battery_percent: float = 20.0
    read_battery: BatteryReader = read_battery
    allowed_origins: frozenset[str] = frozenset()


class Agent:
    """All the parts of one agent.

    Args:
        settings: How it runs.
        session: For HTTP.

    Raises:
        ConfigError: This device is not enrolled.
    """

    def __init__(self, settings: AgentSettings, session: aiohttp.ClientSession) -> None:
        identity = read_identity(settings.home)
        if identity is None or identity.key is None:
            raise ConfigError("this device is in no fleet: maas-edge enrol URL --code CODE")
        url, key = identity.gateway, identity.key
        self._settings = settings
        self._store = StateFile(settings.home)
        self._counters = Counters()
        self._queue = OfflineQueue(settings.home / "queue")
        self._battery = BatteryGauge(settings.read_battery)
        loader = Loader(settings.options, settings.served_model_name)
        self._seat = Seat(Shelf(settings.home), Serving(), loader)
        self._updater = Updater(
            self._seat,
            self._store,
            lambda bundle_id: HttpSource(f"{url}/v1/bundles/{bundle_id}/content", key),
            on_change=self._tell_soon,
        )
        reporter = Reporter(
            self._seat, self._updater, self._store, self._counters, self._queue, self._battery
        )
        gateway = Gateway(session, url, key)
        self._heartbeats = Heartbeats(gateway, self._store, reporter.report, self._on_answer)
        self._cloud = Cloud(session, url, key) if settings.uses_cloud else None
        contact = self._store.state.contact
        if self._cloud is not None and contact is not None:
            self._cloud.model = contact.fallback_model
        self._sender = Sender(self._queue, self._cloud, self._counters) if self._cloud else None

    def make_app(self) -> web.Application:
        """Return the application."""
        fallback = Fallback(
            serving=self._seat.serving,
            cloud=self._cloud,
            queue=self._queue,
            counters=self._counters,
            battery=self._battery,
            on_queued=self._sender.hurry if self._sender else lambda: None,
            min_battery_percent=self._settings.min_battery_percent,
        )
        app = EdgeServer(self._seat.serving, self._counters, (fallback.middleware,)).make_app()
        add_queue_routes(app, self._queue)
        Guard(self._settings.address.host, self._settings.allowed_origins).add_to(app)
        return app

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the errands while the block runs."""
        errands = [asyncio.create_task(self._run())]
        if self._sender is not None:
            errands.append(asyncio.create_task(self._sender.run()))
        try:
            yield
        finally:
            for errand in errands:
                errand.cancel()
            await asyncio.gather(*errands, return_exceptions=True)
            await self._updater.close()
            await self._seat.close()

    async def _run(self) -> None:
        try:
            await bring_up(self._seat, self._store)
        except Exception:
            # Without a bundle it can still be sent one.
            log.exception("no bundle was brought up")
        await self._heartbeats.run()

    def _tell_soon(self) -> None:
        self._heartbeats.hurry()

    def _on_answer(self, answer: HeartbeatAnswer) -> None:
        self._updater.retry_s = min(answer.heartbeat_s, _MAX_RETRY_S)
        self._updater.want(answer.desired)
        if self._cloud is not None and self._sender is not None:
            self._cloud.model = answer.fallback_model
            self._sender.hurry()


async def run_agent(settings: AgentSettings, on_ready: Callable[[int], None]) -> None:
    """Serve, and do the fleet's errands, until SIGINT or SIGTERM.

    Args:
        settings: How.
        on_ready: Told the port.

    Raises:
        ConfigError: This device is not enrolled.
        AlreadyRunning: Another agent runs here.
        PortTaken: Something else listens there.
    """
    stop = stop_when_told()
    jar = aiohttp.DummyCookieJar()
    with one_agent(settings.home):
        async with aiohttp.ClientSession(cookie_jar=jar) as session:
            agent = Agent(settings, session)
            async with listening(agent.make_app(), settings.address) as port, agent.running():
                on_ready(port)
                await stop.wait()


@contextmanager
def one_agent(home: Path) -> Iterator[None]:
    """Let no other agent run on this folder; the kernel lets go of a dead one.

    Raises:
        AlreadyRunning: One does.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".agent.lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(f"an agent runs on {home}: stop it first") from error
        yield
