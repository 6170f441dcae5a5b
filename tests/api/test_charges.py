"""Money through the API: what was delivered is charged once, and told as OpenAI tells it."""

import contextlib
import time
from contextlib import closing
from decimal import Decimal

import httpx
import pytest
from openai import OpenAI

from maas.core.ids import new_id
from maas.ledger.prices import Rates
from maas.ledger.tariff import Tariff
from maas.store.key_terms import KeyTerms
from maas.store.records import Role
from tests.api.tenant import ASK, COST, PRICE, Tenant
from tests.fakes.engine import fake_engine

pytestmark = pytest.mark.usefixtures("priced")


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
