"""Many devices against one real gateway process: enrolled, heard, updated in stages, halted."""

import asyncio
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import aiohttp
import httpx
import pytest

from maas.bootstrap.fleet import fleet_of
from maas.bootstrap.store import Store, open_store
from maas.core.settings import Settings
from maas.serving.fleet import FleetKeeper
from maas.store.fleet import Fleet
from maas.store.fleet_records import NewRollout, Rollout
from maas.store.rollout_rules import RolloutStatus, Stage, is_in
from maas.store.state import ensure_project
from tests.conftest import REPOSITORY
from tests.fakes.devices import FakeDevice, heartbeat_of, made_bundle
from tests.platform import free_port

T = TypeVar("T")
STAGES = (Stage(1), Stage(10), Stage(100))
# Of devices that enrol, and of devices that report.
NUM_ENROLLING, NUM_CONNECTIONS = 50, 16


@dataclass
class Swarm:
    """Devices that share some connections, and how long each request took."""

    url: str
    client: aiohttp.ClientSession
    devices: list[FakeDevice] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0

    async def enrol(self, codes: list[str]) -> None:
        async def one(code: str) -> None:
            body = {"code": code, "nonce": secrets.token_hex(16)}
            async with self.client.post("/v1/devices/enrol", json=body) as answer:
                assert answer.status == 200, await answer.text()
                made = await answer.json()
            self.devices.append(FakeDevice(self.url, made["device"]["id"], made["key"]))

        await self._each(codes, one, NUM_ENROLLING)

    async def beat(self) -> None:
        """Let every device send one heartbeat."""

        async def one(device: FakeDevice) -> None:
            headers = {"Authorization": f"Bearer {device.key}"}
            body = heartbeat_of(bundle_id=device.runs, update=device.update)
            began = time.perf_counter()
            async with self.client.post(
                "/v1/devices/heartbeat", json=body, headers=headers
            ) as answer:
                assert answer.status == 200, await answer.text()
                orders = await answer.json()
            self.latencies_s.append(time.perf_counter() - began)
            device.hear(orders)

        began = time.perf_counter()
        await self._each(self.devices, one, NUM_CONNECTIONS)
        self.elapsed_s += time.perf_counter() - began

    async def _each(
        self, items: list[T], work: Callable[[T], Awaitable[None]], num_connections: int
    ) -> None:
        rest = iter(items)

        async def connection() -> None:
            for item in rest:
                await work(item)

        await asyncio.gather(*(connection() for _ in range(num_connections)))

    def that_wanted(self, bundle_id: str) -> set[str]:
        return {device.id for device in self.devices if bundle_id in device.wanted}

    def report(self) -> str:
        """Say how fast it went."""
        p95 = statistics.quantiles(self.latencies_s, n=20)[-1]
        rate = len(self.latencies_s) / self.elapsed_s
        return (
            f"{len(self.devices)} devices, {len(self.latencies_s)} heartbeats on "
            f"{NUM_CONNECTIONS} connections: {rate:.0f}/s, p95 {p95 * 1000:.1f} ms"
        )


@dataclass(frozen=True)
class Site:
    """A gateway process, its store, and what the controller does."""

    url: str
    home: Path
    store: Store
    fleet: Fleet
    keeper: FleetKeeper
    project_id: str

    def bundle(self, name: str) -> str:
        return made_bundle(self.store, self.project_id, self.home, name)

    def rollout(self, bundle_id: str) -> Rollout:
        new = NewRollout("stable", bundle_id, STAGES, max_failure_percent=5.0, min_reports=1)
        return self.fleet.rollouts.create(self.project_id, new)

    def codes(self, count: int) -> list[str]:
        with self.store.database.together():
            return [
                self.fleet.enrolment.create(
                    self.project_id, group="default", name=None, lifetime_s=3600.0, labels={}
                )[1]
                for _ in range(count)
            ]


@contextmanager
def gateway_process(home: Path) -> Iterator[str]:
    """Run ``maas gateway`` as it is shipped."""
    port = free_port()
    ports = ["--port", str(port), "--metrics-port", str(free_port())]
    url = f"http://127.0.0.1:{port}"
    with (home / "gateway.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "maas", "gateway", *ports],
            cwd=REPOSITORY,
            env={**os.environ, "MAAS_HOME": str(home)},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 60
        while not _is_up(url):
            assert process.poll() is None, (home / "gateway.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the gateway does not start"
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=1).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    settings = Settings(home=tmp_path)
    store = open_store(settings)
    fleet = fleet_of(settings, store)
    keeper = FleetKeeper(fleet.rollouts, fleet.enrolment)
    project_id = ensure_project(store.database, store.clock)
    with gateway_process(tmp_path) as url:
        yield Site(url, tmp_path, store, fleet, keeper, project_id)
    store.database.close()


@asynccontextmanager
async def swarm_of(site: Site, count: int) -> AsyncIterator[Swarm]:
    connector = aiohttp.TCPConnector(limit=NUM_ENROLLING)
    async with aiohttp.ClientSession(site.url, connector=connector) as client:
        swarm = Swarm(site.url, client)
        await swarm.enrol(site.codes(count))
        yield swarm


async def complete(site: Site, swarm: Swarm, rollout: Rollout) -> None:
    """Let a good rollout run to its end, watching who is told of it."""
    for _ in range(12):
        seen = site.fleet.rollouts.get(site.project_id, rollout.id)
        if seen.status is RolloutStatus.COMPLETED:
            break
        percent = seen.stages[seen.stage].percent
        await swarm.beat()
        told = swarm.that_wanted(rollout.bundle_id)
        assert told == {d.id for d in swarm.devices if is_in(rollout.id, d.id, percent)}
        await swarm.beat()
        await asyncio.to_thread(site.keeper.step)
    assert seen.status is RolloutStatus.COMPLETED
    assert seen.counts.succeeded == len(swarm.devices)
    assert site.fleet.channels.get(site.project_id, "stable").bundle_id == rollout.bundle_id


async def fail(site: Site, swarm: Swarm, rollout: Rollout) -> Rollout:
    """Let a bad rollout run until it halts, and a while longer."""
    for device in swarm.devices:
        device.fails = frozenset({rollout.bundle_id})
    for _ in range(6):
        await swarm.beat()
        await asyncio.to_thread(site.keeper.step)
    return site.fleet.rollouts.get(site.project_id, rollout.id)


@pytest.mark.parametrize(
    "count", [200, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
async def test_fleet_takes_a_good_bundle_in_stages_and_stops_a_bad_one(
    site: Site, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.perf_counter()
    async with swarm_of(site, count) as swarm:
        enrolled_s = time.perf_counter() - began
        assert len({device.id for device in swarm.devices}) == count
        first, good, bad = (site.bundle(name) for name in ("first", "good", "bad"))
        site.fleet.channels.set(site.project_id, "stable", first)
        await swarm.beat()
        await swarm.beat()
        summary = site.fleet.devices.summary(site.project_id)
        assert (summary.num_online, summary.num_by_bundle) == (count, {first: count})
        await complete(site, swarm, site.rollout(good))
        assert {device.runs for device in swarm.devices} == {good}
        halted = await fail(site, swarm, site.rollout(bad))
        assert halted.status is RolloutStatus.HALTED
        assert halted.stage in {0, 1}
        told = swarm.that_wanted(bad)
        assert 1 <= len(told) <= halted.counts.eligible
        percent = halted.stages[halted.stage].percent
        assert told <= {d.id for d in swarm.devices if is_in(halted.id, d.id, percent)}
        assert {device.runs for device in swarm.devices} == {good}
        with capsys.disabled():
            took = time.perf_counter() - began
            sys.stdout.write(
                f"\n{swarm.report()}; enrolled in {enrolled_s:.1f} s, all in {took:.1f} s\n"
            )
