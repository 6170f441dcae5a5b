"""A limit holds for two gateways together: not one request more, whichever they ask."""

import asyncio
import threading
import time
from collections.abc import Iterator
from decimal import Decimal

import httpx
import pytest
from sqlalchemy import func, select

from maas.ledger.caps import MINUTE_S
from maas.ledger.prices import Rates
from maas.ledger.tariff import Tariff
from maas.store.ledger_tables import JournalRow
from maas.store.limits import LimitKey
from maas.store.records import LimitScope
from maas.store.state import ensure_project
from tests.chaos.shared_site import Site, running_site
from tests.fakes.engine import fake_engine


@pytest.fixture
def site(postgres, tmp_path) -> Iterator[Site]:
    with postgres.empty() as url, running_site(tmp_path, url) as site:
        yield site


def _price_and_budget(site: Site, num_requests: int) -> Decimal:
    """Make every request cost 0.012 and leave budget for so many; return the budget."""
    rates = Rates(*[Decimal(1000)] * 3)
    tariff = Tariff(site.store.database, site.store.clock)
    tariff.override("tiny", rates, tier="default", currency="USD")
    budget = num_requests * Decimal("0.012")
    about = LimitKey(LimitScope.PROJECT, site.project_id)
    site.store.tenancy.limits.set(about, monthly_budget=budget)
    time.sleep(1)
    return budget


def _spent(site: Site) -> Decimal:
    with site.store.database.read() as session:
        return session.scalar(select(func.sum(JournalRow.amount))) or Decimal(0)


async def _race(site: Site, count: int, key: str = "") -> list[int]:
    """Ask both gateways at once; 0 where one does not answer."""
    body = {"model": "tiny", "prompt": [1, 2, 3, 4, 5], "max_tokens": 7}
    limits = httpx.Limits(max_connections=100)
    headers = {"Authorization": f"Bearer {key or site.key}"}
    async with httpx.AsyncClient(headers=headers, timeout=60, limits=limits) as client:

        async def ask(url: str) -> int:
            try:
                return (await client.post(f"{url}/v1/completions", json=body)).status_code
            except httpx.TransportError:
                return 0

        return await asyncio.gather(*(ask(site.gateways[n % 2]) for n in range(count)))


@pytest.mark.slow  # the next one is the same with a leader that is killed
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


def test_a_budget_holds_over_two_gateways_while_the_leading_controller_is_killed(site):
    for start in (site.start_gateway, site.start_controller):
        start()
        start()
    with fake_engine() as engine:
        site.serve(engine)
        before = set(site.deploy(3))
        site.wait(lambda: before <= site.running(), "a leader")
        already = len(engine.requests)
        budget = _price_and_budget(site, 100)
        killed = site.leader()
        killer = threading.Timer(0.3, killed.kill)
        killer.start()
        statuses = asyncio.run(_race(site, 1000))
        killer.join()
        after = set(site.deploy(3))
        site.wait(lambda: after <= site.running(), "the other controller")
        assert site.leader().pid != killed.pid
        # No answer of an engine is lost to a change of leaders, and not one is too many.
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


def test_requests_a_minute_of_two_gateways_together_stop_at_the_limit(site):
    site.start_gateway()
    site.start_gateway()
    site.start_controller()
    with fake_engine() as engine:
        site.serve(engine)
        project_id = ensure_project(site.store.database, site.store.clock, "limited")
        about = LimitKey(LimitScope.PROJECT, project_id)
        site.store.tenancy.limits.set(about, requests_per_minute=50)
        _, key = site.store.keys.create(project_id=project_id, name="limited")
        site.wait(site.store.leases.are_gateways_current, "the gateways")
        # All of it in one of the limit's minutes.
        left_s = MINUTE_S - site.store.clock.now() % MINUTE_S
        time.sleep(left_s if left_s < 15 else 0)
        statuses = asyncio.run(_race(site, 200, key))
        assert (statuses.count(200), statuses.count(429)) == (50, 150)
