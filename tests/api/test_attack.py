"""Hostile input against the whole gateway: nothing of it reaches the engine."""

import gzip
import json
import socket
from typing import Any

import pytest

from maas.gateway.head_limit import HeadLimitedProtocol
from tests.api.conftest import RunningGateway
from tests.fakes.engine import FakeEngine

CHAT = b'"model":"tiny","messages":[{"role":"user","content":"x"}]'
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": b'"model":"tiny","prompt":"x"',
    "/v1/embeddings": b'"model":"tiny","input":"x"',
    "/v1/responses": b'"model":"tiny","input":"x"',
}
GOOD = b"{" + CHAT + b"}"
DEEP = 90_000
MAX_BODY_BYTES = 200_000  # as the fixture sets it


def address(gateway: RunningGateway) -> tuple[str, int]:
    """Where the gateway listens."""
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    return host, int(port)


def talk(gateway: RunningGateway, raw: bytes, *, wait_s: float = 5.0) -> bytes:
    """Send bytes as they are; return all that comes back until the server closes or is silent."""
    with socket.create_connection(address(gateway), timeout=wait_s) as connection:
        answer = b""
        try:
            connection.sendall(raw)
            while piece := connection.recv(65536):
                answer += piece
        except (ConnectionError, TimeoutError):
            pass
        return answer


def head(gateway: RunningGateway, target: str, *extra: str, method: str = "POST") -> bytes:
    """The head of a request with a good key, without the empty line."""
    key = f"Authorization: Bearer {gateway.key}"
    lines = [f"{method} {target} HTTP/1.1", "Host: x", key, "Content-Type: application/json"]
    return "\r\n".join([*lines, *extra]).encode("latin-1") + b"\r\n"


def post(gateway: RunningGateway, path: str, body: bytes, *extra: str, method: str = "POST") -> Any:
    """Send a request; return its status, its lines of headers and its JSON body."""
    sized = f"Content-Length: {len(body)}"
    asked = head(gateway, path, sized, "Connection: close", *extra, method=method)
    answer = talk(gateway, asked + b"\r\n" + body)
    top, _, content = answer.partition(b"\r\n\r\n")
    assert top, f"no answer to {path} {body[:80]!r}"
    status = int(top.split()[1])
    return status, top, json.loads(content) if content else None


def statuses(answer: bytes) -> list[int]:
    """The status of every response in what came back."""
    return [int(part.split()[0]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def test_a_good_request_passes_in_this_harness(gateway: RunningGateway, engine: FakeEngine) -> None:
    gateway.deploy(engine, model="embedder", capabilities={"embeddings": True})
    for path, body in BODIES.items():
        named = body.replace(b"tiny", b"embedder") if "embed" in path else body
        assert post(gateway, path, b"{" + named + b"}")[0] == 200, path
    assert len(engine.requests) == len(BODIES)


SMUGGLED = [
    b'"cache_salt":"x"',
    b'"cache_salt":"x","cache_salt":null',
    b'"cache_\\u0073alt":"x"',
    b'"\\u0063\\u0061\\u0063\\u0068\\u0065\\u005f\\u0073\\u0061\\u006c\\u0074":"x"',
    b'"Cache_Salt":"x"',
    b'"cache_salt ":"x"',
    b'"extra_body":{"cache_salt":"x"}',
    b'"chat_template":"{{x}}"',
    b'"chat_template_kwargs":{"chat_template":"{{x}}"}',
    b'"lora_request":{"path":"/"}',
    b'"vllm_xargs":{}',
    b'"priority":-1',
    b'"guided_regex":"(a+)+$"',
    b'"structured_outputs":{"regex":"(a+)+$"}',
    b'"__proto__":{"cache_salt":"x"}',
    b'"":1',
    b'"stream":true,"stream_options":{"include_usage":true,"cache_salt":"x"}',
    b'"stream_options":{"continuous_usage_stats":true},"stream":true',
]


def test_engine_fields_cannot_be_smuggled_on_any_route(
    gateway: RunningGateway, engine: FakeEngine
) -> None:
    for path, body in BODIES.items():
        for extra in SMUGGLED:
            for raw in (b"{" + body + b"," + extra + b"}", b"{" + extra + b"," + body + b"}"):
                status, _, answer = post(gateway, path, raw)
                assert status == 400, (path, raw)
                assert answer["error"]["type"] == "invalid_request_error"
    assert engine.paths == []


NESTED = [
    b'{"model":"tiny","messages":[{"role":"user","content":"x","cache_salt":"y"}]}',
    b'{"model":"tiny","messages":[{"role":"user","content":[{"type":"text","text":"x","a":1}]}]}',
    b'{"model":"tiny","messages":[{"role":"user","content":[{"type":"image_url",'
    b'"image_url":{"url":"http://169.254.169.254/"}}]}]}',
    b"{" + CHAT + b',"response_format":{"type":"structural_tag","x":1}}',
    b"{" + CHAT + b',"response_format":{"type":"text","regex":"x"}}',
    b"{" + CHAT + b',"tools":[{"type":"function","function":{"name":"f","x":1}}]}',
    b"{" + CHAT + b',"tools":[{"type":"mcp","server_url":"http://x"}]}',
]


def test_engine_fields_cannot_hide_inside_others(
    gateway: RunningGateway, engine: FakeEngine
) -> None:
    for raw in NESTED:
        assert post(gateway, "/v1/chat/completions", raw)[0] == 400, raw
    assert engine.paths == []


def test_a_key_given_twice_reaches_the_engine_once(
    gateway: RunningGateway, engine: FakeEngine
) -> None:
    raw = b"{" + CHAT + b',"max_tokens":5,"max_tokens":7,"n":128,"n":1}'
    assert post(gateway, "/v1/chat/completions", raw)[0] == 200
    assert engine.requests[0]["max_tokens"] == 7
    assert engine.requests[0]["n"] == 1


def test_of_two_bounds_of_an_answer_the_engine_sees_the_one_that_is_reserved(
    gateway: RunningGateway, engine: FakeEngine
) -> None:
    raw = b"{" + CHAT + b',"max_tokens":100000,"max_completion_tokens":3}'
    assert post(gateway, "/v1/chat/completions", raw)[0] == 200
    bounds = [engine.requests[0].get(name) for name in ("max_tokens", "max_completion_tokens")]
    assert sorted(bounds, key=str) == [3, None]


MALFORMED = [
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"{",
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\x00}\x00",
    b"[" * DEEP,
    b"[" * DEEP + b"]" * DEEP,
    b"{" + CHAT + b',"metadata":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
    b"{"
    + CHAT
    + b',"tools":[{"type":"function","function":{"name":"f","parameters":'
    + b'{"a":' * 5000
    + b"1"
    + b"}" * 5000
    + b"}}]}",
    b"{" + CHAT + b',"temperature":NaN}',
    b"{" + CHAT + b',"temperature":Infinity}',
    b"{" + CHAT + b',"temperature":1e999}',
    b"{" + CHAT + b',"max_tokens":' + b"9" * 5000 + b"}",
    b"{" + CHAT + b',"max_tokens":1e30}',
    b"{" + CHAT + b',"max_tokens":-1}',
    b"{" + CHAT + b',"max_tokens":true}',
    b"{" + CHAT + b',"n":1000000}',
    b"{" + CHAT + b',"seed":18446744073709551616}',
    b"{" + CHAT + b',"stream":1}',
    b"{" + CHAT + b"} {}",
    b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"model":"tiny","messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
    b'{"model":"tiny","messages":[{"role":"user","content":"\xc0\xaf"}]}',
    b'{"model":"tiny","messages":[]}',
    b'{"model":"tiny"}',
    b'{"model":["tiny"],"messages":[{"role":"user","content":"x"}]}',
]


def test_malformed_bodies_are_refused_at_once(gateway: RunningGateway, engine: FakeEngine) -> None:
    for path in BODIES:
        for raw in MALFORMED:
            status, _, answer = post(gateway, path, raw)
            assert status == (413 if len(raw) > MAX_BODY_BYTES else 400), (path, raw[:200])
            assert isinstance(answer["error"]["code"], str)
    assert engine.paths == []


def test_compressed_and_oversized_bodies_are_refused(
    gateway: RunningGateway, engine: FakeEngine
) -> None:
    bomb = gzip.compress(b"{" + b" " * 50_000_000 + CHAT + b"}")
    for path in BODIES:
        assert post(gateway, path, bomb, "Content-Encoding: gzip")[0] == 400
        assert post(gateway, path, b"{" + b" " * 400_000)[0] == 413
        # Declared, not sent: refused without waiting for it.
        declared = head(gateway, path, "Content-Length: 99999999999") + b"\r\n{"
        assert statuses(talk(gateway, declared, wait_s=2)) == [413]
        chunked = b"30d41\r\n" + b" " * 200_001 + b"\r\n0\r\n\r\n"
        asked = head(gateway, path, "Transfer-Encoding: chunked") + b"\r\n" + chunked
        assert statuses(talk(gateway, asked, wait_s=2)) == [413]
    assert engine.paths == []


TRICKS = [
    "/metrics",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/sleep",
    "/wake_up",
    "/health",
    "/v1/../metrics",
    "/v1/%2e%2e/metrics",
    "/v1/%2e%2e%2fmetrics",
    "//v1/load_lora_adapter",
    "/v1//load_lora_adapter",
    "/v1%2Fload_lora_adapter",
    "/v1/chat/completions/../../load_lora_adapter",
    "/v1/chat/completions/..%2f..%2fload_lora_adapter",
    "/v1/chat/completions/",
    "/v1/chat/completions;x",
    "/v1/chat/completions%00",
    "/v1/chat/completions%0d%0aX:y",
    "/V1/CHAT/COMPLETIONS",
    "/v1/chat/completions/load_lora_adapter",
    "/v1/models/../load_lora_adapter",
    "/v1/responses/../load_lora_adapter",
    "/tokenize",
    "/invocations",
    "/collective_rpc",
    "http://evil/v1/load_lora_adapter",
    "http://127.0.0.1:1/metrics",
    "*",
]


@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_no_other_route_of_the_engine_is_reachable(
    gateway: RunningGateway, engine: FakeEngine, method: str
) -> None:
    for target in TRICKS:
        status, _, _ = post(gateway, target, GOOD, method=method)
        assert status in {307, 400, 404, 405}, (method, target, status)
    assert engine.paths == []


def test_names_and_ids_cannot_inject_headers(gateway: RunningGateway, engine: FakeEngine) -> None:
    names = ["a\r\nX-Evil: 1", "a\nb", "../../etc", "tiny\x00", "tiny ", "TINY", "é", "a" * 256]
    for name in names:
        raw = json.dumps({"model": name, "messages": [{"role": "user", "content": "x"}]}).encode()
        status, top, _ = post(gateway, "/v1/chat/completions", raw)
        assert status == 404, name
        assert b"evil" not in top.lower()
    assert engine.paths == []
    for given in ["a b", "x" * 129, "a;b", "\xff", "a\tb", "<script>"]:
        status, top, _ = post(gateway, "/v1/chat/completions", GOOD, f"X-Request-Id: {given}")
        assert status == 200
        (line,) = [line for line in top.split(b"\r\n") if line.lower().startswith(b"x-request-id")]
        assert given.encode("latin-1") not in line
    assert [seen["x-request-id"][:4] for seen in engine.headers] == ["req-"] * 6


def test_headers_of_the_client_do_not_reach_the_engine(
    gateway: RunningGateway, engine: FakeEngine
) -> None:
    extra = ["X-Evil: 1", "Cookie: a=b", "X-Forwarded-For: 10.0.0.1", "Traceparent: x"]
    assert post(gateway, "/v1/chat/completions", GOOD, *extra)[0] == 200
    allowed = {"host", "content-type", "content-length", "x-request-id", "accept"}
    assert set(engine.headers[0]) <= allowed


def test_requests_cannot_be_smuggled_in_a_body(gateway: RunningGateway, engine: FakeEngine) -> None:
    inner = (
        head(gateway, "/v1/completions", "Content-Length: 29")
        + b'\r\n{"model":"tiny","prompt":"x"}'
    )
    path = "/v1/chat/completions"
    size = f"Content-Length: {len(inner) + 5}"
    tricks = [
        head(gateway, path, size, "Transfer-Encoding: chunked") + b"\r\n0\r\n\r\n" + inner,
        head(gateway, path, "Transfer-Encoding: chunked", size) + b"\r\n0\r\n\r\n" + inner,
        head(gateway, path, size, "Transfer-Encoding: xchunked") + b"\r\n0\r\n\r\n" + inner,
        head(gateway, path, size, "Transfer-Encoding : chunked") + b"\r\n0\r\n\r\n" + inner,
        head(gateway, path, "Content-Length: 0", size) + b"\r\n" + inner,
        head(gateway, path, "Content-Length: +5") + b"\r\nhello" + inner,
        head(gateway, path, "Content-Length: 0x5") + b"\r\nhello" + inner,
        head(gateway, path, "Transfer-Encoding: chunked") + b"\r\n-1\r\n" + inner,
        head(gateway, path, "Transfer-Encoding: chunked") + b"\r\n0\n\n" + inner,
    ]
    for raw in tricks:
        seen = statuses(talk(gateway, raw, wait_s=0.5))
        assert 200 not in seen, raw
        assert len(seen) <= 1, (raw, seen)
    assert engine.paths == []


def test_heads_that_are_too_long_are_refused(gateway: RunningGateway, engine: FakeEngine) -> None:
    many = [f"X-{i}: {'y' * 1000}" for i in range(2000)]
    for extra in (["X-Big: " + "y" * 2_000_000], many):
        asked = head(gateway, "/v1/models", *extra, method="GET") + b"\r\n"
        # The rest may still be on its way when the connection closes: then there is no answer.
        assert statuses(talk(gateway, asked)) in ([400], [])
    asked = head(gateway, "/" + "x" * 2_000_000, method="GET") + b"\r\n"
    assert statuses(talk(gateway, asked)) in ([400], [])
    assert post(gateway, "/v1/models", b"", f"X-Some: {'y' * 20_000}", method="GET")[0] == 200


def test_heads_that_never_end_are_given_up(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HeadLimitedProtocol, "head_timeout_s", 0.2)
    for raw in (b"", b"GET /v1/models HTTP/1.1\r\nX: "):
        with socket.create_connection(address(gateway), timeout=5) as connection:
            connection.sendall(raw)
            assert connection.recv(100) == b""


def test_slow_senders_do_not_hold_up_others(gateway: RunningGateway, engine: FakeEngine) -> None:
    slow = head(gateway, "/v1/responses", "Content-Length: 1000") + b'\r\n{"model"'
    connections = [socket.create_connection(address(gateway)) for _ in range(50)]
    try:
        for connection in connections:
            connection.sendall(slow)
        assert post(gateway, "/v1/responses", b'{"model":"tiny","input":"x"}')[0] == 200
    finally:
        for connection in connections:
            connection.close()
    assert len(engine.requests) == 1
    assert post(gateway, "/v1/responses", b'{"model":"tiny","input":"x"}')[0] == 200
