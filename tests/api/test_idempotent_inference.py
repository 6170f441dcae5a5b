"""``Idempotency-Key`` of requests to models: one answer, one charge, whatever crashed meanwhile."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
from openai import OpenAI

from maas.gateway import idempotent_inference
from maas.store.idempotency import KEPT_S
from maas.store.tenancy_tables import IdempotencyRow
from tests.api.conftest import running_gateway
from tests.api.tenant import ASK, COST, Tenant
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.usefixtures("priced")
CRASH = "tests.api.crashing_gateway"
ROUTES = {
    "/v1/completions": ASK,
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"model": "tiny", "input": "hi"},
}


def ask(tenant: Tenant, key: str = "once", path: str = "/v1/completions", **fields):
    body = {**ROUTES[path], **fields}
    return tenant.client.post(path, json=body, headers={"Idempotency-Key": key})


def is_replayed(answer: httpx.Response) -> bool:
    return answer.headers.get("idempotent-replayed") == "true"


def settled(tenant: Tenant, count: int) -> None:
    """Check that so much is charged, and no more once everything is posted."""
    tenant.charges(count)
    time.sleep(0.7)
    assert [row.amount for row in tenant.charges(count)] == [COST] * count


@pytest.mark.parametrize("path", ROUTES)
def test_what_comes_again_gets_the_first_answer_and_is_charged_once(engine, tenant, path):
    before = len(engine.requests)
    first, again = (ask(tenant, path=path) for _ in range(2))
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert (is_replayed(first), is_replayed(again)) == (False, True)
    assert again.headers["x-maas-cost"] == first.headers["x-maas-cost"] == f"{COST:.9f} USD"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert len(engine.requests) == before + 1
    settled(tenant, 1)


def test_the_sdk_s_own_key_works(engine, tenant):
    headers = {"Idempotency-Key": "sdk"}
    with OpenAI(base_url=f"{tenant.gateway.url}/v1", api_key=tenant.key) as sdk:
        asked = [
            sdk.completions.create(model="tiny", prompt="hi", extra_headers=headers)
            for _ in range(2)
        ]
    assert asked[0] == asked[1]
    settled(tenant, 1)


def test_of_twenty_at_once_one_is_computed(engine, tenant):
    before = len(engine.requests)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask(tenant), range(20)))
    assert {answer.content for answer in answers} == {answers[0].content}
    assert sum(not is_replayed(answer) for answer in answers) == 1
    assert len(engine.requests) == before + 1
    settled(tenant, 1)


@pytest.fixture
def at_work(engine, tenant, monkeypatch):
    """A request that is being computed, for two seconds."""
    monkeypatch.setattr(engine, "_pause", lambda _, gone: type(engine)._pause(engine, 2, gone))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, tenant, prompt="slow")
        time.sleep(0.5)
        assert not first.done()
        yield first


def test_of_many_that_wait_for_one_some_are_turned_away(engine, tenant, at_work, monkeypatch):
    monkeypatch.setattr(idempotent_inference, "MAX_FOLLOWERS", 3)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(tenant, prompt="slow"), range(8)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 3 + [503] * 5
    assert all(is_replayed(answer) for answer in answers if answer.status_code == 200)
    assert at_work.result().status_code == 200
    settled(tenant, 1)


def test_another_request_does_not_wait_for_the_one_that_has_the_key(engine, tenant, at_work):
    assert ask(tenant, prompt="other").status_code == 409
    assert not at_work.done()
    assert at_work.result().status_code == 200
    settled(tenant, 1)


def test_what_is_paid_for_is_kept_however_many_wait_for_the_store(
    engine, tenant, at_work, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(idempotent_inference, "_MAX_WAITING", 0)
        assert ask(tenant, key="second").status_code == 503
        assert at_work.result().status_code == 200
    assert is_replayed(ask(tenant, prompt="slow"))
    settled(tenant, 1)


def test_keys_of_a_day_are_counted(engine, tenant, monkeypatch):
    monkeypatch.setattr(idempotent_inference, "MAX_KEYS_A_DAY", 2)
    statuses = [ask(tenant, key=key).status_code for key in ("a", "b", "c", "a")]
    assert statuses == [200, 200, 429, 200]
    assert tenant.ask().status_code == 200
    settled(tenant, 3)


def test_another_request_with_the_key_is_a_conflict(engine, tenant):
    assert ask(tenant).status_code == 200
    for other in (ask(tenant, max_tokens=6), ask(tenant, path="/v1/chat/completions")):
        assert other.status_code == 409
        assert other.json()["error"]["code"] == "idempotency_key_reused"
    settled(tenant, 1)


def test_keys_of_two_projects_have_nothing_to_do_with_each_other(engine, tenant):
    other = Tenant(tenant.gateway)
    with other.client:
        assert [is_replayed(ask(asker)) for asker in (tenant, other)] == [False, False]
        settled(other, 1)


def test_what_was_refused_cost_nothing_and_may_come_again(engine, tenant):
    engine.status = 503
    assert ask(tenant).status_code == 503
    engine.status = 200
    assert ask(tenant, max_tokens=6).status_code == 409
    answer = ask(tenant)
    assert (answer.status_code, is_replayed(answer)) == (200, False)
    assert is_replayed(ask(tenant))
    settled(tenant, 1)


def test_what_is_no_request_may_be_mended_and_is_not_written_down(gateway, engine, tenant):
    assert ask(tenant, max_tokens=-1).status_code == 400
    assert ask(tenant, model="nobody").status_code == 404
    with gateway.store.database.read() as session:
        assert session.get(IdempotencyRow, (tenant.project.id, "once")) is None
    assert ask(tenant).status_code == 200
    settled(tenant, 1)


def test_who_waits_and_leaves_is_noticed(engine, tenant, at_work):
    with suppress(httpx.ReadTimeout):
        tenant.client.post(
            "/v1/completions",
            json={**ASK, "prompt": "slow"},
            headers={"Idempotency-Key": "once"},
            timeout=0.2,
        )
    # Well before the first one is answered.
    time.sleep(0.7)
    assert not at_work.done()
    log = tenant.gateway.home / "logs" / "access.log"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[-1]["status"] == 499
    assert at_work.result().status_code == 200
    settled(tenant, 1)


def test_answer_is_computed_to_its_end_when_its_client_leaves(engine, tenant, monkeypatch):
    before, aborts = len(engine.requests), engine.num_aborts
    monkeypatch.setattr(
        engine, "_pause", lambda seconds, gone: type(engine)._pause(engine, 1, gone)
    )
    with suppress(httpx.ReadTimeout):
        tenant.client.post(
            "/v1/completions",
            json={**ASK, "prompt": "slow"},
            headers={"Idempotency-Key": "left"},
            timeout=0.3,
        )
    answer = ask(tenant, key="left", prompt="slow")
    assert (answer.status_code, is_replayed(answer)) == (200, True)
    assert (len(engine.requests), engine.num_aborts) == (before + 1, aborts)
    settled(tenant, 1)


def test_streams_pass_and_each_is_charged(engine, tenant):
    answers = [ask(tenant, stream=True) for _ in range(2)]
    assert all(answer.text.endswith("data: [DONE]\n\n") for answer in answers)
    assert not any(is_replayed(answer) for answer in answers)
    settled(tenant, 2)


def test_answer_too_long_to_be_kept_is_given_once_and_charged_once(engine, tenant, monkeypatch):
    monkeypatch.setattr(idempotent_inference, "MAX_KEPT_BYTES", 50)
    assert ask(tenant).json()["choices"][0]["text"]
    for _ in range(2):
        again = ask(tenant)
        assert again.status_code == 410
        assert again.json()["error"]["code"] == "answer_not_kept"
    settled(tenant, 1)


def test_no_more_is_kept_for_a_project_than_its_room(engine, tenant, monkeypatch):
    size = len(ask(tenant, key="measured").content)
    monkeypatch.setattr(idempotent_inference, "MAX_KEPT_BYTES_A_DAY", 2 * size + 1)
    for key in ("fits", "does not"):
        assert ask(tenant, key=key.replace(" ", "-")).status_code == 200
    assert ask(tenant, key="fits").status_code == 200
    assert ask(tenant, key="does-not").status_code == 410
    other = Tenant(tenant.gateway)
    with other.client:
        assert [ask(other).status_code for _ in range(2)] == [200, 200]
        settled(other, 1)
    settled(tenant, 3)


def test_one_charge_where_another_gateway_was_faster(gateway, engine, tenant):
    """Two gateways compute; the answer that was kept first is given by both."""
    url = gateway.store.database.engine.url.render_as_string(hide_password=False)
    with running_gateway(gateway.home, url) as second, ThreadPoolExecutor(2) as pool:
        second.wait_seen()
        headers = {"Idempotency-Key": "once", "Authorization": f"Bearer {tenant.key}"}
        asked = [
            pool.submit(httpx.post, f"{base}/v1/completions", json=ASK, headers=headers, timeout=30)
            for base in (gateway.url, second.url)
        ]
        answers = [each.result() for each in asked]
    assert {answer.status_code for answer in answers} == {200}
    assert answers[0].content == answers[1].content
    settled(tenant, 1)


def test_key_is_good_for_another_request_a_day_later(gateway, engine, tenant):
    ask(tenant)
    with gateway.store.database.write() as session:
        row = session.get_one(IdempotencyRow, (tenant.project.id, "once"))
        row.created_at -= KEPT_S
    assert not is_replayed(ask(tenant, max_tokens=6))
    settled(tenant, 2)


def test_what_models_said_cannot_be_read_from_the_store(gateway, engine, tenant):
    assert "Paris" in ask(tenant).text
    with gateway.store.database.read() as session:
        row = session.get_one(IdempotencyRow, (tenant.project.id, "once"))
        assert row.status == 200
        assert b"Paris" not in row.body


@pytest.mark.parametrize("given", [b"a b", b"x" * 256, b"\xe9"])
def test_nonsense_is_no_key(engine, tenant, given):
    before = len(engine.requests)
    answer = tenant.client.post("/v1/completions", json=ASK, headers={b"Idempotency-Key": given})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")
    assert len(engine.requests) == before


def test_nobody_learns_what_was_asked_with_anothers_key(gateway, engine, tenant):
    ask(tenant)
    answer = httpx.post(
        f"{gateway.url}/v1/completions",
        json=ASK,
        headers={"Idempotency-Key": "once", "Authorization": "Bearer sk-maas-nobody"},
    )
    assert answer.status_code == 401
    _, second = gateway.store.keys.create(project_id=tenant.project.id, name="other")
    gateway.wait_seen()
    answer = httpx.post(
        f"{gateway.url}/v1/completions",
        json=ASK,
        headers={"Idempotency-Key": "once", "Authorization": f"Bearer {second}"},
    )
    assert answer.status_code == 409


def test_gateway_killed_between_charge_and_answer_charges_once(gateway, engine, tenant):
    """What comes again is computed again; the log of the dead has a charge that is made then."""
    url = gateway.store.database.engine.url.render_as_string(hide_password=False)
    crashed = subprocess.run(
        [sys.executable, "-m", CRASH, url, str(gateway.home), tenant.key, "charged"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=REPOSITORY,
    )
    assert crashed.returncode == 9, crashed.stderr
    assert len(engine.requests) == 1
    again = ask(tenant)
    assert (again.status_code, is_replayed(again)) == (200, False)
    assert len(engine.requests) == 2
    settled(tenant, 1)
    # It takes over what the dead one left in its log.
    with running_gateway(gateway.home, url):
        settled(tenant, 1)


def test_gateway_that_shuts_down_charges_nothing_for_what_it_did_not_answer(
    gateway, engine, tenant, monkeypatch
):
    url = gateway.store.database.engine.url.render_as_string(hide_password=False)
    headers = {"Idempotency-Key": "once", "Authorization": f"Bearer {tenant.key}"}
    with ThreadPoolExecutor(1) as pool:
        with running_gateway(gateway.home, url) as second:
            second.wait_seen()
            left = pool.submit(
                httpx.post,
                f"{second.url}/v1/completions",
                json={**ASK, "prompt": "slow"},
                headers=headers,
            )
            time.sleep(0.7)
        assert left.result().status_code == 500
    monkeypatch.setattr(engine, "_pause", lambda _, gone: type(engine)._pause(engine, 0, gone))
    answer = ask(tenant, prompt="slow")
    assert (answer.status_code, is_replayed(answer)) == (200, False)
    settled(tenant, 1)
