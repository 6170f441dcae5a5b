"""Chat through the gateway: what goes to the engine, what comes back."""

import contextlib
import json
import time

import httpx
import pytest


def events_of(text: str) -> list[str]:
    return [event.removeprefix("data: ") for event in text.split("\n\n") if event]


def test_answer_comes_back_with_the_callers_request_id(gateway, engine):
    answer = gateway.client.post(
        "/v1/chat/completions",
        json={"model": "tiny", "messages": [{"role": "user", "content": "hi"}]},
        headers={"x-request-id": "mine-1"},
    )
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert answer.headers["x-request-id"] == "mine-1"
    assert engine.headers[0]["x-request-id"] == "mine-1"


def test_odd_request_id_is_replaced(gateway, engine):
    answer = gateway.client.post(
        "/v1/chat/completions",
        json={"model": "tiny", "messages": [{"role": "user", "content": "hi"}]},
        headers={"x-request-id": "a b\tc" + "x" * 300},
    )
    assert answer.headers["x-request-id"].startswith("req-")


def test_callers_key_never_reaches_the_engine(gateway, engine):
    gateway.chat()
    assert "authorization" not in engine.headers[0]
    assert gateway.key not in json.dumps(engine.headers)


def test_engines_headers_stay_with_the_engine(gateway, engine):
    assert "x-engine-secret" not in gateway.chat().headers


def test_stream_without_usage_hides_the_usage_the_platform_forced(gateway, engine):
    events = events_of(gateway.chat(stream=True).text)
    assert engine.requests[0]["stream_options"] == {"include_usage": True}
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert all(chunk["choices"] for chunk in chunks)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == (
        "The capital of France is Paris."
    )


def test_stream_with_usage_ends_in_a_usage_chunk(gateway, engine):
    events = events_of(gateway.chat(stream=True, stream_options={"include_usage": True}).text)
    usage = json.loads(events[-2])
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 7


def test_fields_only_the_platform_reads_do_not_go_on(gateway, engine):
    answer = gateway.chat(user="u", metadata={"a": "b"}, service_tier="auto", store=False)
    assert answer.status_code == 200
    assert engine.requests[0].keys() == {"model", "messages"}


def test_last_of_two_equal_keys_is_the_one_checked_and_sent(gateway, engine):
    raw = (
        b'{"model":"tiny","max_tokens":5,"max_tokens":7,'
        b'"messages":[{"role":"user","content":"hi"}]}'
    )
    assert gateway.client.post("/v1/chat/completions", content=raw).status_code == 200
    assert engine.requests[0]["max_tokens"] == 7


def test_completions_and_embeddings_are_relayed(gateway, engine):
    done = gateway.client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "n": 2})
    assert [choice["text"] for choice in done.json()["choices"]] == [
        "The capital of France is Paris."
    ] * 2
    streamed = gateway.client.post(
        "/v1/completions", json={"model": "tiny", "prompt": "say:a|b", "stream": True}
    )
    assert events_of(streamed.text)[-1] == "[DONE]"


def test_engine_dying_mid_stream_is_an_error_event_and_no_done(gateway, engine):
    for prompt in ("die", "cut", "engine-error"):
        events = events_of(gateway.chat(prompt, stream=True).text)
        assert "[DONE]" not in events, prompt
        error = json.loads(events[-1])["error"]
        assert error["type"] == "server_error"
        assert "/opt" not in events[-1]


def test_engine_dying_before_its_first_byte_is_a_503_with_retry_after(gateway, engine):
    for stream in (True, False):
        answer = gateway.chat("die-first", stream=stream)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "no_replica"


def test_silent_engine_is_given_up_after_the_idle_timeout(gateway, engine):
    started = time.monotonic()
    assert gateway.chat("hang").status_code == 503
    assert time.monotonic() - started < 6


def _begin_and_leave(client: httpx.Client, body: dict) -> None:
    request = client.build_request("POST", "/v1/chat/completions", json=body, timeout=0.5)
    with contextlib.suppress(httpx.ReadTimeout):
        client.send(request, stream=True).close()


@pytest.mark.parametrize("stream", [True, False])
def test_client_leaving_aborts_the_engine_at_once(gateway, engine, stream):
    body = {"model": "tiny", "stream": stream, "messages": [{"role": "user", "content": "slow"}]}
    with httpx.Client(base_url=gateway.url, headers=gateway.client.headers) as leaving:
        _begin_and_leave(leaving, body)
    deadline = time.monotonic() + 2
    while not engine.num_aborts and time.monotonic() < deadline:
        time.sleep(0.02)
    assert engine.num_aborts == 1
    assert engine.num_running == 0


def test_engines_refusal_is_passed_on_without_its_paths(gateway, engine):
    engine.status = 400
    answer = gateway.chat()
    assert answer.status_code == 400
    assert "failed in" in answer.json()["error"]["message"]
    assert "/opt" not in answer.text


def test_engine_failure_is_not_passed_on(gateway, engine):
    engine.status = 500
    answer = gateway.chat()
    assert answer.status_code == 503
    assert "/opt" not in answer.text
