"""Who is asking, which model, which replica: everything that happens before an engine is asked."""

import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from maas.store.records import Replica, ReplicaState
from maas.store.secrets import SecretBox
from tests.fakes.engine import fake_engine


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _status_and_seconds(gateway, headers) -> tuple[int, float]:
    started = time.perf_counter()
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", headers=headers, content=b"{}")
    return answer.status_code, time.perf_counter() - started


def test_no_key_wrong_key_and_revoked_key_are_401_and_take_the_same_time(gateway, engine):
    record, revoked = gateway.store.keys.create(project_id=gateway.project_id, name="gone")
    gateway.store.keys.revoke(record.id)
    gateway.wait_seen()
    kinds = [{}, _bearer("sk-nonsense"), _bearer(gateway.key[:-4] + "AAAA"), _bearer(revoked)]
    seconds: list[list[float]] = [[] for _ in kinds]
    for _ in range(40):
        for kind, times in zip(kinds, seconds, strict=True):
            status, spent = _status_and_seconds(gateway, kind)
            assert status == 401
            times.append(spent)
    medians = [statistics.median(times) for times in seconds]
    assert max(medians) < 1.5 * min(medians)
    assert engine.requests == []


def test_revoked_key_stops_working_within_a_second(gateway, engine):
    record, key = gateway.store.keys.create(project_id=gateway.project_id, name="k")
    gateway.wait_seen()
    assert httpx.get(f"{gateway.url}/v1/models", headers=_bearer(key)).status_code == 200
    gateway.store.keys.revoke(record.id)
    time.sleep(0.5)
    assert httpx.get(f"{gateway.url}/v1/models", headers=_bearer(key)).status_code == 401


def test_unknown_model_is_a_404_that_lists_the_names(gateway, engine):
    answer = gateway.chat(model="gpt-5")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "tiny" in answer.json()["error"]["message"]


def test_alias_answers_under_its_own_name_and_refuses_the_same_fields(gateway, engine):
    gateway.store.aliases.point("fast", "tiny")
    gateway.wait_seen()
    for stream in (False, True):
        text = gateway.chat(model="fast", stream=stream).text
        assert '"model":"fast"' in text
        assert '"model":"tiny"' not in text
    assert {request["model"] for request in engine.requests} == {"tiny"}
    refused = gateway.chat(model="fast", chat_template="x")
    assert refused.json()["error"]["code"] == "forbidden_field"
    listed = {m["id"]: m for m in gateway.client.get("/v1/models").json()["data"]}
    assert listed["fast"]["root"] == "tiny"


def test_engine_under_another_name_shows_ours(gateway):
    with fake_engine(model="org/odd-name") as odd:
        gateway.deploy(odd, model="ours")
        for stream in (False, True):
            text = gateway.chat(model="ours", stream=stream).text
            assert "odd-name" not in text
        assert odd.requests[0]["model"] == "org/odd-name"


def test_dead_replica_is_retried_elsewhere_and_nobody_notices(gateway):
    with fake_engine() as good, fake_engine() as dead:
        deployment = gateway.deploy(good, model="pair")
        gateway.lease(deployment, dead, name="b")
        gateway.lease(deployment, good, name="c")
        dead.status = 503
        answers = [gateway.chat(f"hi {i}", model="pair").status_code for i in range(20)]
        assert answers == [200] * 20
        assert len(good.requests) >= 20
    gateway.wait_seen()
    answer = gateway.chat(model="pair")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1


def test_full_replica_is_passed_over_and_full_ones_are_a_503_that_says_when(gateway):
    with fake_engine() as good, fake_engine() as full:
        deployment = gateway.deploy(good, model="crowd")
        gateway.lease(deployment, full, name="b")
        full.status, full.retry_after = 429, "7"
        answers = [gateway.chat(f"hi {i}", model="crowd", stream=bool(i % 2)) for i in range(10)]
        assert [answer.status_code for answer in answers] == [200] * 10
        assert full.requests, "it was asked, or nothing is shown"
        good.status, good.retry_after = 429, "11"
        for stream in (False, True):
            refused = gateway.chat("one more", model="crowd", stream=stream)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (503, "engine_overloaded")
            assert error["type"] == "server_error"
            assert "'crowd' is overloaded" in error["message"]
            assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == (
                "7",
                "7000",
            )
            assert "x-maas-limit" not in refused.headers, "no limit of the caller's"
        good.status = 503
        assert gateway.chat(model="crowd").json()["error"]["code"] == "engine_overloaded"
        good.status = 200
        assert gateway.chat(model="crowd").status_code == 200


@pytest.mark.parametrize("said", [None, "Sun, 06 Nov 1994 08:49:37 GMT", "-1", "9" * 30, "inf"])
def test_engine_that_does_not_say_when_in_seconds_gets_our_own_delay(gateway, engine, said):
    engine.status, engine.retry_after = 429, said
    refused = gateway.chat()
    engine.retry_after = None
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")


def test_sdk_comes_again_by_itself_when_an_engine_is_full(gateway, engine):
    engine.status, engine.retry_after = 429, "0"
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=2)
    with pytest.raises(openai.InternalServerError) as refused:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
    engine.retry_after = None
    assert refused.value.code == "engine_overloaded"
    assert len(engine.requests) == 3


def test_same_prompt_goes_to_the_same_replica_and_load_spreads(gateway):
    with fake_engine() as first, fake_engine() as second:
        deployment = gateway.deploy(first, model="two")
        gateway.lease(deployment, second, name="b")
        for _ in range(6):
            gateway.chat("a prompt that stays the same", model="two")
        assert sorted([len(first.requests), len(second.requests)]) == [0, 6]
        with ThreadPoolExecutor(12) as pool:
            body = {"model": "two", "max_tokens": 400}
            done = pool.map(
                lambda _: gateway.chat("slow", stream=True, **body).status_code, range(12)
            )
        assert list(done) == [200] * 12
        assert min(len(first.requests), len(second.requests)) >= 2


def test_draining_and_expired_replicas_get_nothing(gateway):
    with fake_engine() as engine:
        deployment = gateway.deploy(engine, model="leaving")
        for state, expires_at in (
            (ReplicaState.DRAINING, time.time() + 60),
            (ReplicaState.READY, time.time() - 1),
        ):
            gateway.store.replicas.publish(
                Replica(
                    id=f"{deployment.id}-a",
                    deployment_id=deployment.id,
                    url=engine.url,
                    engine_model="tiny",
                    state=state,
                    started_at=0,
                    expires_at=expires_at,
                )
            )
            gateway.wait_seen()
            assert gateway.chat(model="leaving").status_code == 503
        assert engine.requests == []


def test_secret_of_an_external_engine_is_sent_and_never_shown(gateway):
    sealed = SecretBox(gateway.home).seal("s3cret")
    with fake_engine(secret="s3cret") as engine:
        gateway.deploy(engine, model="locked", secret=sealed)
        answer = gateway.chat(model="locked")
        assert answer.status_code == 200
        assert engine.headers[0]["authorization"] == "Bearer s3cret"
        assert "s3cret" not in answer.text


def test_what_an_engine_cannot_do_is_refused_by_name(gateway):
    with fake_engine() as engine:
        gateway.deploy(engine, model="plain", capabilities={"logprobs": False, "tools": False})
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        for fields, name in (({"logprobs": True}, "logprobs"), ({"tools": tools}, "tools")):
            answer = gateway.chat(model="plain", **fields)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "capability_missing"
            assert name in answer.json()["error"]["message"]
        assert engine.requests == []


def test_too_long_prompt_is_refused_before_the_engine(gateway, engine):
    answer = gateway.chat("x", max_tokens=513)
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert engine.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/nothing", 404),
        ("GET", "/v1/chat/completions/", 404),
        ("GET", "/metrics", 404),
    ],
)
def test_wrong_routes_answer_in_the_error_shape(gateway, method, path, status):
    answer = gateway.client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


def test_health_readiness_and_document(gateway, engine):
    assert httpx.get(f"{gateway.url}/healthz").json() == {"status": "ok"}
    ready = httpx.get(f"{gateway.url}/readyz").json()
    assert ready["ready"] is True
    assert ready["models"]["tiny"] == 1
    document = httpx.get(f"{gateway.url}/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/models"} <= set(
        document["paths"]
    )


def test_metrics_count_requests_tokens_and_times(gateway, engine):
    gateway.chat(stream=True)
    page = httpx.get(f"{gateway.metrics_url}/metrics").text
    route = "/v1/chat/completions"
    requests = rf'maas_requests_total{{model="tiny",replica="dep-.*",route="{route}",status="200"}}'
    assert int(float(re.search(requests + r" (\S+)", page)[1])) >= 1
    for kind in ("prompt", "cached", "completion"):
        tokens = rf'maas_tokens_total{{kind="{kind}",model="tiny",replica="dep-.*"}} (\S+)'
        assert float(re.search(tokens, page)[1]) >= 3
    for name in ("time_to_first_token", "inter_token", "request_duration"):
        assert f"maas_{name}_seconds_bucket" in page


async def test_async_sdk_streams_and_embeds(gateway):
    with fake_engine() as engine:
        everything = {"embeddings": True}
        gateway.deploy(engine, model="vectors", capabilities=everything)
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key) as client:
            stream = await client.chat.completions.create(
                model="vectors", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
            assert text == "The capital of France is Paris."
            vector = await client.embeddings.create(model="vectors", input=["a", "b"])
            assert vector.data[1].embedding == pytest.approx([0.6, 0.8], abs=0.3)
            assert engine.requests[-1]["encoding_format"] == "base64"


def test_batch_of_prompts_is_measured_by_its_longest(gateway):
    with fake_engine() as engine:
        gateway.deploy(engine, model="batch", capabilities={"embeddings": True})
        url, many = "/v1/embeddings", [[1] * 300, [2] * 300]
        fits = gateway.client.post(url, json={"model": "batch", "input": many})
        assert fits.status_code == 200
        long = gateway.client.post(url, json={"model": "batch", "input": [[1] * 600]})
        assert long.json()["error"]["param"] == "input"


def test_deployment_that_cannot_be_read_takes_no_other_down(gateway, engine):
    with fake_engine() as other:
        gateway.deploy(other, model="broken", secret="not sealed by us")
        _record, key = gateway.store.keys.create(project_id=gateway.project_id, name="later")
        gateway.wait_seen()
        assert httpx.get(f"{gateway.url}/v1/models", headers=_bearer(key)).status_code == 200
        assert gateway.chat().status_code == 200
        assert gateway.chat(model="broken").status_code == 503
