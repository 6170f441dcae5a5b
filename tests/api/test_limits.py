"""Limits and money through the API: refused whole, charged once, true in the headers."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from decimal import Decimal

import httpx
import pytest
from openai import OpenAI, RateLimitError
from sqlalchemy import select

from maas.core.ids import new_id
from maas.ledger.caps import MINUTE_S
from maas.ledger.prices import Rates
from maas.ledger.tariff import Tariff
from maas.store.key_terms import KeyTerms
from maas.store.ledger_tables import JournalRow
from maas.store.limits import LimitKey
from maas.store.projects import ProjectChange
from maas.store.records import LimitScope, Priority, Role
from tests.fakes.engine import fake_engine

# A thousandth of a unit each token. The fake engine counts 5 in, 7 out; of a prompt that comes as
# tokens, as many are reserved.
PRICE = Decimal(1000)
COST = Decimal("0.012")
SLOW = {"prompt": "slow"}
ASK = {"model": "tiny", "prompt": [1, 2, 3, 4, 5], "max_tokens": 7}


@pytest.fixture(scope="module", autouse=True)
def priced(gateway):
    tariff = Tariff(gateway.store.database, gateway.store.clock)
    tariff.override("tiny", Rates(PRICE, PRICE, PRICE), tier="default", currency="USD")
    gateway.wait_seen()


class Tenant:
    """A project of its own with one key."""

    def __init__(self, gateway) -> None:
        self.gateway = gateway
        store = gateway.store
        organization = store.tenancy.organizations.find("default")
        self.project = store.tenancy.projects.create(organization.id, new_id("test"))
        _, self.key = store.keys.create(project_id=self.project.id, name="k")
        self.client = httpx.Client(
            base_url=gateway.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=30
        )
        gateway.wait_seen()

    def limit(self, **numbers) -> None:
        """Set limits; what follows has most of a minute before it."""
        left_s = MINUTE_S - self.gateway.store.clock.now() % MINUTE_S
        time.sleep(left_s if left_s < 8 and any("minute" in name for name in numbers) else 0)
        key = LimitKey(LimitScope.PROJECT, self.project.id)
        self.gateway.store.tenancy.limits.set(key, **numbers)
        self.gateway.wait_seen()

    def ask(self, **fields) -> httpx.Response:
        return self.client.post("/v1/completions", json={**ASK, **fields})

    def charges(self, count: int) -> list[JournalRow]:
        """Return the project's charges, once there are so many."""
        deadline = time.monotonic() + 5
        while True:
            with self.gateway.store.database.read() as session:
                rows = session.scalars(
                    select(JournalRow)
                    .where(JournalRow.project_id == self.project.id)
                    .order_by(JournalRow.at)
                ).all()
            if len(rows) >= count or time.monotonic() > deadline:
                assert len(rows) == count
                return list(rows)
            time.sleep(0.05)


@contextmanager
def new_tenant(gateway) -> Iterator[Tenant]:
    tenant = Tenant(gateway)
    with tenant.client:
        yield tenant


@pytest.fixture
def tenant(gateway, engine) -> Iterator[Tenant]:
    with new_tenant(gateway) as tenant:
        yield tenant


async def _race(tenant: Tenant, count: int, **fields) -> list[int]:
    limits = httpx.Limits(max_connections=200)
    headers = {"Authorization": f"Bearer {tenant.key}"}
    async with httpx.AsyncClient(
        base_url=tenant.gateway.url, headers=headers, timeout=60, limits=limits
    ) as client:
        answers = await asyncio.gather(
            *(client.post("/v1/completions", json={**ASK, **fields}) for _ in range(count))
        )
    return [answer.status_code for answer in answers]


def test_an_answer_says_what_it_costs_and_is_charged_that(tenant):
    answer = tenant.ask()
    assert answer.status_code == 200
    assert answer.headers["x-maas-cost"] == "0.012000000 USD"
    (row,) = tenant.charges(1)
    assert row.amount == COST
    assert (row.input_tokens, row.cached_tokens, row.output_tokens) == (5, 3, 7)
    assert (row.exactness, row.endpoint, row.num_requests) == ("exact", "/v1/completions", 1)
    assert row.request_id == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/responses", {"input": "hi"}),
    ],
)
def test_chat_and_responses_are_limited_and_charged_alike(tenant, route, body):
    tenant.limit(requests_per_minute=1, monthly_budget=Decimal(10))
    answers = [tenant.client.post(route, json={"model": "tiny", **body}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[0].headers["x-maas-cost"] == "0.012000000 USD"
    assert answers[0].headers["x-ratelimit-remaining-requests"] == "0"
    assert answers[1].headers["x-maas-limit"].startswith("requests_per_minute of project:")
    (row,) = tenant.charges(1)
    assert (row.amount, row.endpoint) == (COST, "/v1/chat/completions")
    (counted,) = _results(_usage(tenant))
    assert counted["num_model_requests"] == 1


def test_embeddings_are_charged_by_what_goes_in(gateway, tenant):
    rates = Rates(PRICE, PRICE, PRICE)
    tariff = Tariff(gateway.store.database, gateway.store.clock)
    tariff.override("vectors", rates, tier="default", currency="USD")
    with fake_engine() as engine:
        gateway.deploy(engine, model="vectors", capabilities={"embeddings": True})
        answer = tenant.client.post("/v1/embeddings", json={"model": "vectors", "input": ["a"]})
        assert answer.headers["x-maas-cost"] == "0.002000000 USD"
        (row,) = tenant.charges(1)
    assert (row.input_tokens, row.output_tokens, row.exactness) == (2, 0, "exact")
    (counted,) = _results(_usage(tenant, "usage/embeddings"))
    assert (counted["num_model_requests"], counted["input_tokens"]) == (1, 2)
    assert _results(_usage(tenant)) == []


def test_what_was_used_keeps_its_price_when_prices_change(gateway, tenant):
    with fake_engine() as engine:
        gateway.deploy(engine, model="repriced")
        tariff = Tariff(gateway.store.database, gateway.store.clock)
        for factor in (1, 3):
            rates = Rates(PRICE * factor, PRICE * factor, PRICE * factor)
            tariff.override("repriced", rates, tier="default", currency="USD")
            gateway.wait_seen()
            assert tenant.ask(model="repriced").status_code == 200
        first, second = tenant.charges(2)
    assert (first.amount, second.amount) == (COST, 3 * COST)
    for row, factor in ((first, 1), (second, 3)):
        assert tariff.by_id(row.price_id).rates.input_per_million == PRICE * factor


def test_a_stream_is_charged_alike_and_shows_no_usage_unasked(tenant):
    with tenant.client.stream("POST", "/v1/completions", json={**ASK, "stream": True}) as answer:
        text = answer.read().decode()
    assert '"usage":{' not in text
    assert tenant.charges(1)[0].amount == COST


def test_a_client_that_leaves_pays_for_what_went_out(tenant):
    body = {**ASK, "prompt": "slow", "stream": True}
    with (
        httpx.Client(headers=tenant.client.headers, timeout=30) as leaving,
        leaving.stream("POST", f"{tenant.gateway.url}/v1/completions", json=body) as answer,
        closing(answer.iter_lines()) as lines,
    ):
        seen = [next(lines) for _ in range(5)]
    (row,) = tenant.charges(1)
    assert row.exactness == "estimated"
    num_events = sum(line.startswith("data:") for line in seen)
    assert num_events <= row.output_tokens <= num_events + 2
    assert row.amount > 0


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_before_the_answer_pays_for_its_prompt(tenant, engine, is_stream):
    tenant.limit(requests_per_minute=3)
    message = {"role": "user", "content": "slow" if is_stream else "hang"}
    body = {"model": "tiny", "messages": [message], "stream": is_stream}
    for number in range(3):
        with closing(httpx.Client(headers=tenant.client.headers, timeout=0.5)) as leaving:
            url = f"{tenant.gateway.url}/v1/chat/completions"
            with (
                contextlib.suppress(httpx.ReadTimeout),
                leaving.stream("POST", url, json=body) as answer,
            ):
                next(answer.iter_lines())
        tenant.charges(number + 1)
    for row in tenant.charges(3):
        assert (row.exactness, row.num_requests) == ("estimated", 1)
        assert row.input_tokens > 0
        assert row.output_tokens <= 1
    assert tenant.ask().status_code == 429
    assert len(engine.requests) == 3


@pytest.mark.parametrize("prompt", ["die-first", "hang"])
def test_what_delivers_nothing_costs_nothing(tenant, prompt):
    tenant.limit(requests_per_minute=3, monthly_budget=Decimal(1))
    for _ in range(2):
        assert tenant.ask(prompt=prompt).status_code >= 500
    answer = tenant.ask()
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "2"
    tenant.charges(1)


def test_an_engine_that_dies_half_way_is_paid_for_what_went_out(tenant):
    body = {**ASK, "prompt": "die", "stream": True}
    answer = tenant.client.post("/v1/completions", json=body)
    assert "error" in answer.text
    (row,) = tenant.charges(1)
    assert (row.exactness, row.output_tokens) == ("estimated", 2)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_what_an_engine_does_not_count_is_charged_by_its_text(tenant, is_stream):
    tenant.limit(requests_per_minute=2)
    answers = [tenant.ask(prompt="uncounted", stream=is_stream) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    for row in tenant.charges(2):
        assert row.exactness == "estimated"
        # Eight events (the last one has no text), or 31 bytes.
        assert row.output_tokens == 8
        assert row.input_tokens > 0


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
    statuses = asyncio.run(_race(tenant, 40))
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
    statuses = asyncio.run(_race(tenant, 6, prompt="slow", stream=True))
    assert statuses.count(200) == 2
    assert tenant.ask().status_code == 200


def test_a_thousand_racing_requests_stop_at_a_budget_for_a_hundred(tenant, engine):
    tenant.limit(monthly_budget=100 * COST)
    statuses = asyncio.run(_race(tenant, 1000))
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
            statuses = asyncio.run(_race(tenant, 3, prompt="slow", stream=True))
        gateway.store.tenancy.limits.set(about, concurrent_requests=None)
        gateway.wait_seen()
        assert statuses.count(200) == 1, scope.__name__


def test_usage_and_costs_come_as_openai_shapes_them(tenant):
    for _ in range(3):
        tenant.ask()
    tenant.charges(3)
    _, admin = tenant.gateway.store.keys.create(
        project_id=tenant.project.id, name="admin", scopes=("admin",)
    )
    tenant.gateway.wait_seen()
    ask = {"start_time": int(time.time()) - 60, "project_ids[]": tenant.project.id}
    headers = {"Authorization": f"Bearer {admin}"}
    page = tenant.client.get(
        "/v1/organization/usage/completions",
        params={**ask, "group_by[]": "project_id"},
        headers=headers,
    ).json()
    assert page["object"] == "page"
    (result,) = [result for bucket in page["data"] for result in bucket["results"]]
    assert result["object"] == "organization.usage.completions.result"
    counts = ("num_model_requests", "input_tokens", "input_cached_tokens", "output_tokens")
    assert [result[name] for name in counts] == [3, 15, 9, 21]
    assert result["project_id"] == tenant.project.id
    page = tenant.client.get("/v1/organization/costs", params=ask, headers=headers).json()
    (result,) = [result for bucket in page["data"] for result in bucket["results"]]
    assert result["amount"] == {"value": 0.036, "currency": "usd", "exact": "0.036000000"}
    refused = tenant.client.get("/v1/organization/costs", params=ask)
    assert refused.status_code == 403


def _usage(tenant: Tenant, what: str = "usage/completions", **params) -> httpx.Response:
    if not hasattr(tenant, "admin"):
        _, tenant.admin = tenant.gateway.store.keys.create(
            project_id=tenant.project.id, name="admin", scopes=("admin",)
        )
        tenant.gateway.wait_seen()
    ask = {"start_time": int(time.time()) - 60, "project_ids[]": tenant.project.id, **params}
    headers = {"Authorization": f"Bearer {tenant.admin}"}
    return tenant.client.get(f"/v1/organization/{what}", params=ask, headers=headers)


def _results(answer: httpx.Response) -> list[dict]:
    assert answer.status_code == 200, answer.text
    return [result for bucket in answer.json()["data"] for result in bucket["results"]]


def test_usage_is_told_apart_by_whatever_openai_offers(tenant):
    store = tenant.gateway.store
    user = store.tenancy.users.create(
        tenant.project.organization_id,
        email=f"{new_id('u')}@example.org",
        name="U",
        role=Role.OWNER,
    )
    terms = KeyTerms(user_id=user.id)
    _, key = store.keys.create(project_id=tenant.project.id, name="u", terms=terms)
    tenant.gateway.wait_seen()
    tenant.ask()
    headers = {"Authorization": f"Bearer {key}"}
    assert tenant.client.post("/v1/completions", json=ASK, headers=headers).status_code == 200
    tenant.charges(2)
    by_user = {r["user_id"]: r for r in _results(_usage(tenant, **{"group_by[]": "user_id"}))}
    assert set(by_user) == {None, user.id}
    assert by_user[user.id]["num_model_requests"] == 1
    (mine,) = _results(_usage(tenant, **{"user_ids[]": user.id}))
    assert mine["num_model_requests"] == 1
    keys = _results(_usage(tenant, **{"group_by[]": "api_key_id"}))
    assert {result["api_key_id"] for result in keys} == {
        key.split("-")[2],
        tenant.key.split("-")[2],
    }
    (model,) = _results(_usage(tenant, **{"group_by[]": "model"}))
    assert (model["model"], model["num_model_requests"]) == ("tiny", 2)
    (batch,) = _results(_usage(tenant, **{"group_by[]": "batch"}))
    assert batch["batch"] is False
    assert _results(_usage(tenant, batch="true")) == []
    assert len(_results(_usage(tenant, batch="false"))) == 1
    refused = _usage(tenant, **{"group_by[]": "colour"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "group_by")


def test_usage_and_costs_are_what_the_sdk_expects(tenant):
    tenant.ask()
    tenant.charges(1)
    assert _usage(tenant).status_code == 200  # makes the key that may ask
    ask = {"start_time": int(time.time()) - 60, "project_ids": [tenant.project.id]}
    base = f"{tenant.gateway.url}/v1"
    with OpenAI(base_url=base, api_key="none", admin_api_key=tenant.admin) as client:
        usage = client.admin.organization.usage
        groups = ["project_id", "user_id", "api_key_id", "model", "batch", "service_tier"]
        page = usage.completions(**ask, group_by=groups, bucket_width="1m")
        (result,) = [result for bucket in page.data for result in bucket.results]
        assert (result.num_model_requests, result.input_tokens, result.output_tokens) == (1, 5, 7)
        assert (result.input_cached_tokens, result.model, result.batch) == (3, "tiny", False)
        assert (result.project_id, result.service_tier) == (tenant.project.id, "default")
        groups = ["project_id", "user_id", "api_key_id", "line_item"]
        page = usage.costs(**ask, group_by=groups, bucket_width="1d")
        (cost,) = [result for bucket in page.data for result in bucket.results]
        assert (cost.amount.value, cost.amount.currency) == (0.012, "usd")
        assert (cost.line_item, cost.project_id) == ("tiny", tenant.project.id)
        for kind in (usage.embeddings, usage.moderations):
            page = kind(**ask)
            assert [result for bucket in page.data for result in bucket.results] == []


@pytest.mark.parametrize(("width", "seconds"), [("1m", 60), ("1h", 3600), ("1d", 86_400)])
def test_usage_comes_in_pages_of_buckets(tenant, width, seconds):
    tenant.ask()
    tenant.charges(1)
    end = int(time.time()) + 1
    ask = {"bucket_width": width, "start_time": end - 5 * seconds, "end_time": end}
    whole = _usage(tenant, **ask).json()["data"]
    assert {bucket["end_time"] - bucket["start_time"] for bucket in whole} == {seconds}
    paged, page = [], None
    for number in range(10):
        answer = _usage(tenant, **ask, limit=2, **({"page": page} if page else {})).json()
        assert len(answer["data"]) <= 2
        paged += answer["data"]
        page = answer["next_page"]
        assert answer["has_more"] == (page is not None)
        if page is None:
            break
        assert number < 9
    assert paged == whole
    assert sum(len(bucket["results"]) for bucket in paged) == 1
    for limit in (0, -1, 100_000):
        refused = _usage(tenant, **ask, limit=limit)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "limit")


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
