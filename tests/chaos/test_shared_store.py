"""Two gateways and two controllers on one PostgreSQL: kill or stop any; the service goes on.

Real processes, as an operator starts them; the controllers' cluster is a journal (no Ray), and
the engine behind the model ``tiny`` is a fake one. Limits over both gateways belong here too.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from maas.bootstrap.reconcile import LEASE_NAME
from maas.bootstrap.store import Store, open_store, save_settings
from maas.core.settings import Settings
from maas.ledger.prices import Rates
from maas.ledger.tariff import Tariff
from maas.store.ledger_tables import JournalRow
from maas.store.limits import LimitKey
from maas.store.records import LimitScope
from maas.store.state import ensure_project
from maas.store.tables import LeaseRow
from maas.store.tenancy import open_tenancy
from tests.chaos.journal_controller import read_journal, running_in
from tests.conftest import REPOSITORY
from tests.fakes.engine import FakeEngine, fake_engine
from tests.platform import free_port

LEASE_S = 2.0


@dataclass
class Site:
    """One store, and the processes on it; each machine has a home of its own."""

    folder: Path
    url: str
    key: str = ""
    gateways: list[str] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    controllers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.journal = self.folder / "journal"
        self.journal.touch()
        self.store: Store = open_store(self._settings("operator"))
        self.project_id = ensure_project(self.store.database, self.store.clock)
        _, self.key = self.store.keys.create(project_id=self.project_id, name="load")

    def _settings(self, machine: str) -> Settings:
        return Settings.model_validate(
            {
                "home": self.folder / machine,
                "database_url": self.url,
                "serving": {"lease_ttl_s": LEASE_S, "reconcile_interval_s": 0.1},
            }
        )

    def _start(self, name: str, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=REPOSITORY,
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def start_gateway(self) -> None:
        """As in docs/operators.md: on another machine, with the store's URL."""
        port, machine = free_port(), f"gateway-{len(self.gateways)}"
        ports = ["--port", str(port), "--metrics-port", str(free_port())]
        environment = {
            "MAAS_HOME": str(self.folder / machine),
            "MAAS_DATABASE_URL": self.url,
        }
        self._start(machine, ["maas", "gateway", *ports], **environment)
        self.gateways.append(f"http://127.0.0.1:{port}")

    def restart_gateway(self, number: int) -> None:
        """Start a gateway again on its own machine; it gets another port."""
        port = free_port()
        ports = ["--port", str(port), "--metrics-port", str(free_port())]
        environment = {
            "MAAS_HOME": str(self.folder / f"gateway-{number}"),
            "MAAS_DATABASE_URL": self.url,
        }
        self._start(f"gateway-{number}", ["maas", "gateway", *ports], **environment)
        self.gateways[number] = url = f"http://127.0.0.1:{port}"

        def is_ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/readyz").status_code == 200
            return False

        self.wait(is_ready, "the gateway that was started again")

    def start_controller(self) -> None:
        name = f"controller-{len(self.processes)}"
        settings_file = save_settings(self._settings(name))
        command = ["tests.chaos.journal_controller", str(settings_file), str(self.journal)]
        self.controllers.append(self._start(name, command))

    def leader(self) -> subprocess.Popen[bytes]:
        """Return the controller that acted last."""
        acts = read_journal(self.journal)
        assert acts, "no controller has acted yet"
        return next(item for item in self.controllers if item.pid == acts[-1]["pid"])

    def holder(self) -> str | None:
        with self.store.database.read() as session:
            row = session.get(LeaseRow, LEASE_NAME)
            return row and row.holder

    def deploy(self, count: int) -> list[str]:
        """Write down deployments for the journal."""
        return [
            self.store.deployments.create(
                project_id=self.project_id, model_id="m", engine="vllm", options={}
            ).id
            for _ in range(count)
        ]

    def serve(self, engine: FakeEngine) -> None:
        """Deploy the model ``tiny``, its lease kept by whoever leads."""
        self.store.deployments.create(
            project_id=self.project_id,
            model_id="tiny",
            engine="external",
            options={"url": engine.url, "max_model_len": engine.max_model_len},
        )
        self.wait_answers(self.key, 200)

    def chat(self, url: str, key: str | None = None) -> int:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
        headers = {"Authorization": f"Bearer {key or self.key}"}
        try:
            path = f"{url}/v1/chat/completions"
            return httpx.post(path, json=body, headers=headers, timeout=10).status_code
        except httpx.TransportError:
            return 0

    def wait_answers(self, key: str, status: int) -> float:
        """Wait until every gateway answers a key with a status; return the seconds that took."""
        return sum(
            self.wait(lambda url=url: self.chat(url, key) == status, f"{status} of {url}")
            for url in self.gateways
        )

    def running(self) -> set[str]:
        return set(running_in(read_journal(self.journal)))

    def wait(self, is_done: Callable[[], object], what: str, timeout_s: float = 20) -> float:
        """Wait for something; return the seconds that took."""
        started = time.monotonic()
        while not is_done():
            took = time.monotonic() - started
            assert took < timeout_s, f"waited {took:.1f} s for {what}; logs in {self.folder}"
            time.sleep(0.02)
        return time.monotonic() - started

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.store.database.close()


@pytest.fixture
def site(postgres, tmp_path) -> Iterator[Site]:
    with postgres.empty() as url:
        site = Site(tmp_path, url)
        try:
            yield site
        finally:
            site.close()


@pytest.fixture
def controllers(site: Site) -> Site:
    """Two controllers, one of which leads."""
    site.start_controller()
    site.start_controller()
    first = site.deploy(1)
    site.wait(lambda: site.running() == set(first), "a leader")
    return site


def terms(site: Site) -> list[int]:
    """Return who led, one after the other, by process id."""
    acts = [line["pid"] for line in read_journal(site.journal)]
    return [pid for n, pid in enumerate(acts) if n == 0 or acts[n - 1] != pid]


def started_more_than_once(site: Site) -> list[str]:
    started = [line["id"] for line in read_journal(site.journal) if line["act"] == "start"]
    return [name for name in started if started.count(name) > 1]


def test_killed_leader_is_followed_within_the_lease_and_both_gateways_serve_on(controllers):
    site = controllers
    site.start_gateway()
    site.start_gateway()
    with fake_engine() as engine:
        site.serve(engine)
        seen: dict[str, list[int]] = {url: [] for url in site.gateways}
        is_over = threading.Event()

        def ask(url: str) -> None:
            while not is_over.is_set():
                seen[url].append(site.chat(url))

        clients = [threading.Thread(target=ask, args=(url,)) for url in site.gateways]
        for client in clients:
            client.start()
        before = set(site.deploy(10))
        site.wait(lambda: before <= site.running(), "what was deployed before")
        (external,) = site.store.replicas.live()
        assert external.expires_at > site.store.clock.now() + LEASE_S
        killed = site.leader()
        killed.kill()
        after = set(site.deploy(10))
        took = site.wait(lambda: after <= site.running(), "what was deployed after")
        time.sleep(LEASE_S * 2)  # longer than any lease that nobody renews
        is_over.set()
        for client in clients:
            client.join()
    assert took < LEASE_S + 1
    assert len(terms(site)) == 2
    assert site.leader().pid != killed.pid
    assert started_more_than_once(site) == []
    for answers in seen.values():
        assert len(answers) > 20
        assert set(answers) == {200}


def test_revoked_key_is_refused_by_both_gateways_within_a_second(site):
    site.start_gateway()
    site.start_gateway()
    site.start_controller()
    with fake_engine() as engine:
        site.serve(engine)
        for _ in range(5):
            record, key = site.store.keys.create(project_id=site.project_id, name="short")
            site.wait_answers(key, 200)
            site.store.keys.revoke(record.id)
            assert site.wait_answers(key, 401) < 1


def _price_and_budget(site: Site, num_requests: int) -> Decimal:
    """Make every request cost 0.012 and leave budget for so many; return the budget."""
    rates = Rates(*[Decimal(1000)] * 3)
    tariff = Tariff(site.store.database, site.store.clock)
    tariff.override("tiny", rates, tier="default", currency="USD")
    budget = num_requests * Decimal("0.012")
    about = LimitKey(LimitScope.PROJECT, site.project_id)
    open_tenancy(site.store.database, site.store.clock).limits.set(about, monthly_budget=budget)
    time.sleep(1)
    return budget


def _spent(site: Site) -> Decimal:
    with site.store.database.read() as session:
        return session.scalar(select(func.sum(JournalRow.amount))) or Decimal(0)


async def _race(site: Site, count: int) -> list[int]:
    """Ask both gateways at once; 0 where one does not answer."""
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 7}
    limits = httpx.Limits(max_connections=100)
    headers = {"Authorization": f"Bearer {site.key}"}
    async with httpx.AsyncClient(headers=headers, timeout=60, limits=limits) as client:

        async def ask(url: str) -> int:
            try:
                return (await client.post(f"{url}/v1/completions", json=body)).status_code
            except httpx.TransportError:
                return 0

        return await asyncio.gather(*(ask(site.gateways[n % 2]) for n in range(count)))


def test_a_budget_holds_over_two_gateways_in_total(site):
    site.start_gateway()
    site.start_gateway()
    site.start_controller()
    with fake_engine() as engine:
        site.serve(engine)
        site.wait(lambda: _spent(site) == 0, "a free start")
        already = len(engine.requests)
        budget = _price_and_budget(site, 100)
        statuses = asyncio.run(_race(site, 1000))
        assert set(statuses) == {200, 429}
        assert statuses.count(200) == len(engine.requests) - already == 100
        site.wait(lambda: _spent(site) == budget, "the journal")


def test_a_budget_holds_while_gateways_are_killed(site):
    site.start_gateway()
    site.start_gateway()
    site.start_controller()
    with fake_engine() as engine:
        site.serve(engine)
        budget = _price_and_budget(site, 300)
        killer = threading.Timer(0.3, site.processes[0].kill)
        killer.start()
        statuses = asyncio.run(_race(site, 600))
        killer.join()
        num_answered = statuses.count(200)
        assert 0 < num_answered <= 300
        # Its machine starts it again: the books of the dead one are closed, the rest is spent.
        site.restart_gateway(0)
        statuses = asyncio.run(_race(site, 600))
        num_answered += statuses.count(200)
        site.wait(lambda: _spent(site) >= budget - Decimal("0.2"), "the rest of the budget", 30)
        time.sleep(1)
        assert num_answered * Decimal("0.012") <= _spent(site) <= budget


def test_leader_that_stood_still_does_nothing_when_it_goes_on(controllers):
    site = controllers
    stopped = site.leader()
    stopped.send_signal(signal.SIGSTOP)
    later = set(site.deploy(5))
    site.wait(lambda: later <= site.running(), "the other controller")
    follower = site.leader()
    assert follower.pid != stopped.pid
    # While the first stands still, in the middle of a pass, its work is done by the other one.
    gone = later.pop()
    site.store.deployments.delete(gone)
    site.wait(lambda: gone not in site.running(), "the deletion")
    stopped.send_signal(signal.SIGCONT)
    more = set(site.deploy(5))
    site.wait(lambda: more <= site.running(), "what came later")
    time.sleep(LEASE_S)
    assert terms(site) == [stopped.pid, follower.pid]
    assert started_more_than_once(site) == []


def test_controllers_killed_at_any_moment_do_nothing_twice_and_forget_nothing(controllers):
    site = controllers
    chance = random.Random(7)
    wanted = set(site.running())
    for _ in range(4):
        wanted |= set(site.deploy(5))
        gone = {wanted.pop() for _ in range(2)}
        for name in gone:
            site.store.deployments.delete(name)
        time.sleep(chance.uniform(0, 0.3))
        victim = chance.choice(site.controllers)
        victim.kill()
        victim.wait()
        site.controllers.remove(victim)
        site.start_controller()
    site.wait(lambda: site.running() == wanted, "the cluster to be as written down")
    time.sleep(1)
    assert site.running() == wanted
    assert len(set(terms(site))) == len(terms(site)), "nobody led a second time"
    assert started_more_than_once(site) == []
    stops = [line["id"] for line in read_journal(site.journal) if line["act"] == "stop"]
    assert len(stops) == len(set(stops))


def test_controller_that_is_asked_to_stop_hands_over_at_once(controllers):
    site = controllers
    site.leader().send_signal(signal.SIGTERM)
    later = set(site.deploy(1))
    assert site.wait(lambda: later <= site.running(), "the other controller") < LEASE_S / 2


def test_store_that_restarts_is_found_again_by_gateways_and_controllers(own_postgres, tmp_path):
    with own_postgres.empty() as url:
        site = Site(tmp_path, url)
        try:
            site.start_controller()
            site.start_gateway()
            with fake_engine() as engine:
                site.serve(engine)
                own_postgres.stop()
                time.sleep(LEASE_S)
                # What was known still holds.
                assert site.chat(site.gateways[0]) == 200
                own_postgres.start()
                later = set(site.deploy(1))
                site.wait(lambda: later <= site.running(), "the controller")
                site.wait(lambda: site.chat(site.gateways[0]) == 200, "the gateway")
            assert [process.poll() for process in site.processes] == [None, None]
        finally:
            site.close()
