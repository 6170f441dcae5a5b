"""Limits through the API: refused whole, true in the headers."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from openai import OpenAI, RateLimitError

from maas.ledger.prices import Rates
from maas.ledger.tariff import Tariff
from maas.store.limits import LimitKey
from maas.store.projects import ProjectChange
from maas.store.records import LimitScope, Priority
from tests.api.tenant import ASK, COST, PRICE, Tenant, new_tenant, race
from tests.fakes.engine import fake_engine

pytestmark = pytest.mark.usefixtures("priced")
SLOW = {"prompt": "slow"}


def test_a_refusal_says_how_near_every_limit_is(tenant):
    tenant.limit(requests_per_minute=2, tokens_per_minute=1000)
    answers = [tenant.ask() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    refused = answers[-1].headers
    assert refused["x-ratelimit-limit-requests"] == "2"
    assert refused["x-ratelimit-remaining-requests"] == "0"
    assert refused["x-ratelimit-limit-tokens"] == "1000"
    assert refused["x-ratelimit-remaining-tokens"] == str(1000 - 2 * 12)
    assert refused["x-ratelimit-reset-tokens"].endswith("s")


def test_the_rest_of_the_tokens_is_true(tenant):
    tenant.limit(tokens_per_minute=100)
    left = [int(tenant.ask().headers["x-ratelimit-remaining-tokens"]) for _ in range(3)]
    assert left == [88, 76, 64]
    time.sleep(2)  # the slice goes back, and comes again
    assert int(tenant.ask().headers["x-ratelimit-remaining-tokens"]) == 52


def test_what_waits_and_is_open_is_in_the_metrics(tenant):
    def metric(name: str) -> float:
        page = httpx.get(f"{tenant.gateway.metrics_url}/metrics").text
        (line,) = [line for line in page.splitlines() if line.startswith(name)]
        return float(line.rpartition(" ")[2])

    body = {**ASK, "prompt": "slow", "stream": True}
    with tenant.client.stream("POST", "/v1/completions", json=body):
        assert metric("maas_open_reservations ") == 1
        assert metric('maas_queued_requests{model="tiny"}') == 0
    tenant.charges(1)
    assert metric("maas_open_reservations ") == 0
    assert metric("maas_unposted_charges ") == 0


def test_a_full_deployment_takes_online_before_batch_which_pays_its_own_price(gateway):
    store = gateway.store
    tariff = Tariff(store.database, store.clock)
    for tier, factor in (("default", 2), ("batch", 1)):
        rates = Rates(PRICE * factor, PRICE * factor, PRICE * factor)
        tariff.override("full", rates, tier=tier, currency="USD")
    with fake_engine() as engine, new_tenant(gateway) as online, new_tenant(gateway) as batch:
        deployment = gateway.deploy(engine, model="full")
        (lease,) = [item for item in store.replicas.live() if item.deployment_id == deployment.id]
        store.replicas.publish(replace(lease, max_num_seqs=1))
        store.tenancy.projects.modify(batch.project.id, ProjectChange(priority=Priority.BATCH))
        gateway.wait_seen()
        with ThreadPoolExecutor(3) as clients:
            body = {**ASK, "model": "full", "stream": True}
            first = clients.submit(online.client.post, "/v1/completions", json={**body, **SLOW})
            _until(lambda: len(engine.requests) == 1)
            asked = []
            for number, (tenant, prompt) in enumerate(((batch, [1]), (online, [2])), start=1):
                asked.append(clients.submit(tenant.ask, model="full", prompt=prompt))
                _until(lambda number=number: _num_queued(gateway, "full") == number)
            assert [answer.result().status_code for answer in (first, *asked)] == [200] * 3
        assert [request["prompt"] for request in engine.requests] == ["slow", [2], [1]]
        (row,) = batch.charges(1)
        assert (row.tier, row.amount) == ("batch", COST)
        assert {(row.tier, row.amount) for row in online.charges(2)} == {("default", 2 * COST)}


def _until(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _num_queued(gateway, model: str) -> int:
    page = httpx.get(f"{gateway.metrics_url}/metrics").text
    lines = [line for line in page.splitlines() if line.startswith("maas_queued_requests{")]
    return sum(int(float(line.split()[-1])) for line in lines if f'"{model}"' in line)


def test_requests_a_minute(tenant):
    tenant.limit(requests_per_minute=3)
    answers = [tenant.ask() for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 2
    assert [a.headers["x-ratelimit-remaining-requests"] for a in answers[:3]] == ["2", "1", "0"]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
    refused = answers[3]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    name = f"requests_per_minute of project:{tenant.project.id}"
    assert name in refused.json()["error"]["message"]
    assert refused.headers["x-maas-limit"] == name
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert len(tenant.charges(3)) == 3


def test_tokens_a_minute_never_let_more_through(tenant, engine):
    tenant.limit(tokens_per_minute=100)
    statuses = asyncio.run(race(tenant, 40))
    assert statuses.count(200) == 8  # 12 tokens each
    assert len(engine.requests) == 8
    assert tenant.ask(max_tokens=500).status_code == 429


def test_a_refused_request_uses_nothing_up(tenant):
    tenant.limit(requests_per_minute=2, tokens_per_day=30)
    for _ in range(5):
        assert tenant.ask(max_tokens=400).status_code == 429
    assert [tenant.ask().status_code for _ in range(3)] == [200, 200, 429]


def test_concurrent_requests(tenant):
    tenant.limit(concurrent_requests=2)
    statuses = asyncio.run(race(tenant, 6, prompt="slow", stream=True))
    assert statuses.count(200) == 2
    assert tenant.ask().status_code == 200


def test_a_thousand_racing_requests_stop_at_a_budget_for_a_hundred(tenant, engine):
    tenant.limit(monthly_budget=100 * COST)
    statuses = asyncio.run(race(tenant, 1000))
    assert statuses.count(200) == 100
    assert set(statuses) == {200, 429}
    assert len(engine.requests) == 100
    assert sum(row.amount for row in tenant.charges(100)) == 100 * COST


def test_a_spent_budget_is_said_in_a_way_that_sdks_do_not_try_again(tenant, engine):
    tenant.limit(monthly_budget=COST)
    base = f"{tenant.gateway.url}/v1"
    with OpenAI(base_url=base, api_key=tenant.key, max_retries=3) as client:
        client.completions.create(**ASK)
        with pytest.raises(RateLimitError) as refused:
            client.completions.create(**ASK)
    assert refused.value.code == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert len(engine.requests) == 1


def test_what_never_fits_a_limit_is_not_tried_again(tenant, engine):
    tenant.limit(tokens_per_minute=50)
    refused = tenant.ask(max_tokens=100)
    assert refused.status_code == 429
    assert "set max_tokens lower" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"
    fits = {"max_tokens": 4}
    statuses = [tenant.ask(**fits) for _ in range(20)]
    last = statuses[-1]
    assert (statuses[0].status_code, last.status_code) == (200, 429)
    assert "x-should-retry" not in last.headers


def test_a_raised_limit_counts_at_once(tenant):
    tenant.limit(monthly_budget=COST)
    assert [tenant.ask().status_code for _ in range(2)] == [200, 429]
    tenant.limit(monthly_budget=2 * COST)
    assert [tenant.ask().status_code for _ in range(2)] == [200, 429]


def test_limits_of_organisation_key_and_model_count_too(gateway, engine):
    def organization(tenant: Tenant) -> LimitKey:
        return LimitKey(LimitScope.ORGANIZATION, tenant.project.organization_id)

    def key(tenant: Tenant) -> LimitKey:
        return LimitKey(LimitScope.KEY, tenant.key.split("-")[2])

    def model(_: Tenant) -> LimitKey:
        return LimitKey(LimitScope.MODEL, "tiny")

    def model_in_project(tenant: Tenant) -> LimitKey:
        return LimitKey(LimitScope.PROJECT, tenant.project.id, "tiny")

    scopes: list[Callable[[Tenant], LimitKey]] = [organization, key, model, model_in_project]
    for scope in scopes:
        with new_tenant(gateway) as tenant:
            about = scope(tenant)
            gateway.store.tenancy.limits.set(about, concurrent_requests=1)
            gateway.wait_seen()
            statuses = asyncio.run(race(tenant, 3, prompt="slow", stream=True))
        gateway.store.tenancy.limits.set(about, concurrent_requests=None)
        gateway.wait_seen()
        assert statuses.count(200) == 1, scope.__name__


def test_an_alias_has_no_limit_of_its_own_that_would_never_count(tenant):
    gateway = tenant.gateway
    gateway.store.aliases.point("quick", "tiny")
    _, admin = gateway.store.keys.create(
        project_id=tenant.project.id, name="admin", scopes=("admin",)
    )
    gateway.wait_seen()
    headers = {"Authorization": f"Bearer {admin}"}
    path = f"/v1/organization/projects/{tenant.project.id}/rate_limits"
    listed = tenant.client.get(path, headers=headers).json()["data"]
    models = {item["model"] for item in listed}
    assert "tiny" in models
    assert "quick" not in models
    body = {"max_requests_per_1_minute": 0}
    refused = tenant.client.post(f"{path}/rl-quick", json=body, headers=headers)
    assert refused.status_code == 400
    assert "'tiny'" in refused.json()["error"]["message"]
    assert tenant.client.post(f"{path}/rl-tiny", json=body, headers=headers).status_code == 200
    assert tenant.ask(model="quick").status_code == 429
