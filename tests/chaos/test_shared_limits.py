"""A limit holds for two gateways together: not one request more, whichever they ask."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

import httpx
import pytest

from maas.core.ids import new_id
from maas.ledger.caps import MINUTE_S
from maas.ledger.prices import Rates
from maas.ledger.tariff import Tariff
from maas.ledger.usage import UsageReader
from maas.store.limits import LimitKey
from maas.store.records import LimitScope
from maas.store.state import ensure_project
from tests.chaos.shared_site import Site, running_site
from tests.fakes.engine import fake_engine

# What each answer of the fake engine has; at a dollar a token that is what it costs.
TOKENS = 2
BODY = {
    "model": "tiny",
    "max_completion_tokens": TOKENS,
    "messages": [{"role": "user", "content": "say:a|b"}],
}


@pytest.fixture(scope="module")
def site(postgres, tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with postgres.empty() as url, running_site(folder, url) as site, fake_engine() as engine:
        site.start_gateway()
        site.start_gateway()
        site.start_controller()
        site.serve(engine)
        yield site


def limit(site: Site, **values: int | Decimal) -> str:
    """Make a project with a limit that both gateways know; return a key of it."""
    name = new_id("limited")
    project_id = ensure_project(site.store.database, site.store.clock, name)
    site.store.tenancy.limits.set(LimitKey(LimitScope.PROJECT, project_id), **values)
    _, key = site.store.keys.create(project_id=project_id, name=name)
    site.limited_project = project_id
    site.wait(site.store.leases.are_gateways_current, "the gateways")
    return key


def price(site: Site) -> None:
    """Let a generated token cost a dollar."""
    rates = Rates(output_per_million=Decimal(10**6))
    tariff = Tariff(site.store.database, site.store.clock)
    tariff.override("tiny", rates, tier="default", currency="USD")


async def race(site: Site, key: str, count: int, *, at_once: int = 40) -> Counter[int]:
    """Send requests to both gateways by turns; count the answers by status, 0 for none."""
    turns = asyncio.Semaphore(at_once)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(headers=headers, timeout=30) as client:

        async def ask(number: int) -> int:
            url = site.gateways[number % len(site.gateways)]
            async with turns:
                try:
                    answer = await client.post(f"{url}/v1/chat/completions", json=BODY)
                except httpx.TransportError:
                    return 0
                return answer.status_code

        return Counter(await asyncio.gather(*(ask(number) for number in range(count))))


async def test_requests_a_minute_of_two_gateways_together_stop_at_the_limit(site):
    key = limit(site, requests_per_minute=50)
    # All of it in one of the limit's minutes.
    left_s = MINUTE_S - site.store.clock.now() % MINUTE_S
    await asyncio.sleep(left_s if left_s < 20 else 0)
    assert await race(site, key, 200) == {200: 50, 429: 150}


async def test_budget_of_two_gateways_together_is_spent_to_the_cent_and_no_further(site):
    price(site)
    key = limit(site, monthly_budget=Decimal(100 * TOKENS))
    assert await race(site, key, 1000) == {200: 100, 429: 900}
    usage = UsageReader(site.store.database, site.store.clock)

    def spent() -> Decimal:
        return usage.spent_this_month(LimitScope.PROJECT, site.limited_project)

    site.wait(lambda: spent() == 100 * TOKENS, "the journal to say so")


async def test_budget_holds_when_a_gateway_is_killed_in_mid_race(site):
    price(site)
    key = limit(site, monthly_budget=Decimal(100 * TOKENS))
    racing = asyncio.create_task(race(site, key, 600))
    await asyncio.sleep(random.Random(time.time()).uniform(0.1, 0.6))
    site.processes[0].kill()
    answers = await racing
    assert 0 < answers[200] <= 100
    # What the killed one had been lent comes back when its books are closed; then all is spent.
    usage = UsageReader(site.store.database, site.store.clock)
    site.restart_gateway(0)
    deadline = time.monotonic() + 30
    while True:
        more = await race(site, key, 20)
        spent = usage.spent_this_month(LimitScope.PROJECT, site.limited_project)
        assert spent <= 100 * TOKENS
        if spent == 100 * TOKENS:
            break
        assert time.monotonic() < deadline, (answers, more, spent)
        await asyncio.sleep(0.5)
