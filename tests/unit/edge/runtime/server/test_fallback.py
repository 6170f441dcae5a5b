"""What a device does not answer goes to the cloud, is kept for later, or says why not."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from tokenizers import Tokenizer

from maas.edge.runtime.battery import Battery
from maas.edge.runtime.server.app import EdgeServer
from maas.edge.runtime.server.cloud import Cloud
from maas.edge.runtime.server.counters import Counters
from maas.edge.runtime.server.fallback import Fallback
from maas.edge.runtime.server.offline import OfflineQueue, QueueLimits
from maas.edge.runtime.server.queued import add_queue_routes
from maas.edge.runtime.server.serve import Address, listening
from maas.edge.runtime.server.served import Served, Serving
from maas.edge.runtime.server.templates import load_template
from tests.fakes.edge_engine import FakeEdgeEngine
from tests.fakes.gateway import FALLBACK_MODEL, FakeGateway, fake_gateway
from tests.unit.edge.conftest import write_tiny_tokenizer

SHORT = [{"role": "user", "content": "hello"}]
LONG = [{"role": "user", "content": "x" * 100}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
QUEUE = {"x-maas-when-offline": "queue"}
LOW = Battery(5.0, False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(made)
    return made


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with fake_gateway() as running:
        running.keys["nonce"] = "device-key"
        yield running


@dataclass
class Bench:
    """A server, and all that a test changes about it."""

    serving: Serving
    served: Served
    engine: FakeEdgeEngine
    cloud: Cloud
    counters: Counters
    queue: OfflineQueue
    client: httpx.AsyncClient
    batteries: list[Battery | None] = field(default_factory=lambda: [None])

    async def chat(
        self, headers: dict[str, str] | None = None, path: str = "chat/completions", **fields: Any
    ) -> httpx.Response:
        body = {"model": "tiny", "messages": SHORT, "max_tokens": 4, **fields}
        return await self.client.post(f"/v1/{path}", json=body, headers=headers)


MakeBench = Callable[..., Any]


@pytest.fixture
async def bench(folder: Path, gateway: FakeGateway, tmp_path: Path) -> AsyncIterator[Bench]:
    engine, counters = FakeEdgeEngine(), Counters()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    served = Served("tiny", engine, tokenizer, load_template(folder), reads_tools=False)
    serving = Serving(served)
    queue = OfflineQueue(tmp_path / "queue", QueueLimits(max_requests=2))
    batteries: list[Battery | None] = [None]
    async with aiohttp.ClientSession() as session:
        cloud = Cloud(session, gateway.url, "device-key")
        cloud.model = FALLBACK_MODEL
        fallback = Fallback(
            serving=serving,
            cloud=cloud,
            queue=queue,
            counters=counters,
            battery=lambda: batteries[0],
            on_queued=lambda: None,
            min_battery_percent=20,
        )
        app = EdgeServer(serving, counters, (fallback.middleware,)).make_app()
        add_queue_routes(app, queue)
        async with (
            listening(app, Address("127.0.0.1", 0)) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client,
        ):
            yield Bench(serving, served, engine, cloud, counters, queue, client, batteries)


def by(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.headers["x-maas-served-by"]


def error_of(answer: httpx.Response) -> dict[str, Any]:
    return answer.json()["error"]


async def test_what_the_device_can_the_device_answers(bench, gateway):
    answer = await bench.chat()
    assert by(answer) == (200, "device")
    assert answer.json()["usage"]["completion_tokens"] == 4
    assert gateway.requests == []
    assert (bench.counters.num_requests, bench.counters.num_fallbacks) == (1, 0)
    listed = await bench.client.get("/v1/models")
    assert listed.headers["x-maas-served-by"] == "device"


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": LONG},
        {"max_tokens": 60},
        {"messages": IMAGE},
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "auto"},
        {"model": FALLBACK_MODEL},
        {"path": "completions", "messages": None, "prompt": "x" * 100},
        {"path": "embeddings", "messages": None, "max_tokens": None, "input": "text"},
        {"headers": {"x-maas-cloud": "always"}},
    ],
    ids=str,
)
async def test_what_it_cannot_the_cloud_answers(bench, gateway, fields):
    fields = {"messages": SHORT, "max_tokens": 4} | fields
    path, headers = fields.pop("path", "chat/completions"), fields.pop("headers", None)
    body = {"model": "tiny", **{name: value for name, value in fields.items() if value is not None}}
    answer = await bench.client.post(f"/v1/{path}", json=body, headers=headers)
    assert by(answer) == (200, "cloud")
    assert answer.json()["words"]
    # All as it was, but the model.
    assert gateway.requests == [{**body, "model": FALLBACK_MODEL}]
    assert bench.counters.num_fallbacks == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL], "tool_choice": "none"},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tools": []},
    ],
    ids=str,
)
async def test_tools_that_need_no_parser_stay_here(bench, fields):
    assert by(await bench.chat(**fields)) == (200, "device")


@pytest.mark.parametrize("where", ["auto", "never"])
async def test_a_wrong_request_is_refused_here_whatever_the_cloud_would_say(bench, gateway, where):
    headers = {"x-maas-cloud": where}
    assert by(await bench.chat(headers, temperature=9)) == (400, "device")
    assert by(await bench.chat(headers, model="other")) == (404, "device")
    broken = await bench.client.post("/v1/chat/completions", content=b"{", headers=headers)
    assert (broken.status_code, error_of(broken)["code"]) == (400, "malformed_body")
    assert gateway.requests == []


async def test_a_request_that_must_stay_here_stays_here(bench, gateway):
    bench.batteries[0] = LOW
    never = {"x-maas-cloud": "never"}
    assert by(await bench.chat(never)) == (200, "device")
    refused = await bench.chat(never, messages=LONG)
    assert (by(refused), error_of(refused)["code"]) == ((400, "device"), "context_length_exceeded")
    bench.engine.fails = "first"
    assert by(await bench.chat(never)) == (500, "device")
    assert gateway.requests == []


@pytest.mark.parametrize("headers", [{"x-maas-cloud": "maybe"}, {"x-maas-when-offline": "wait"}])
async def test_headers_that_mean_nothing_are_refused(bench, headers):
    assert by(await bench.chat(headers)) == (400, "device")


async def test_a_model_of_one_name_here_and_there_is_answered_here(bench, gateway):
    bench.cloud.model = "tiny"
    assert by(await bench.chat()) == (200, "device")


@pytest.mark.parametrize(
    ("battery", "place"),
    [
        (LOW, "cloud"),
        (Battery(19.9, None), "cloud"),
        (Battery(5, True), "device"),
        (Battery(20, False), "device"),
        (None, "device"),
    ],
)
async def test_a_low_battery_is_spared(bench, battery, place):
    bench.batteries[0] = battery
    assert by(await bench.chat()) == (200, place)


async def test_a_low_battery_answers_where_the_cloud_does_not(bench, gateway):
    bench.batteries[0] = LOW
    gateway.status = 503
    assert by(await bench.chat()) == (200, "device")
    gateway.stop()
    assert by(await bench.chat()) == (200, "device")
    assert by(await bench.chat(QUEUE, messages=LONG)) == (202, "device")


async def test_without_a_bundle_the_cloud_answers_or_the_error_says_when(bench, gateway):
    bench.serving.exchange(None, "a bundle is on its way")
    assert by(await bench.chat(model="whatever")) == (200, "cloud")
    bench.cloud.model = None
    refused = await bench.chat()
    assert by(refused) == (503, "device")
    assert int(refused.headers["retry-after"]) > 0
    assert error_of(refused)["message"] == "a bundle is on its way"
    assert (await bench.client.get("/health")).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_fails_before_the_first_byte_is_stood_in_for(bench, gateway, stream):
    bench.engine.fails = "first"
    answer = await bench.chat(stream=stream)
    assert by(answer) == (200, "cloud")
    assert len(gateway.requests) == 1


async def test_an_engine_that_fails_later_is_not(bench, gateway):
    bench.engine.fails = "later"
    answer = await bench.chat(stream=True)
    assert by(answer) == (200, "device")
    assert "no memory" in answer.text
    assert "[DONE]" not in answer.text
    assert gateway.requests == []


async def test_nothing_of_the_client_reaches_the_gateway_but_its_body(bench, gateway):
    headers = {"Authorization": "Bearer local-secret", "Cookie": "a=b", "x-mine": "c"}
    answer = await bench.chat(headers, messages=LONG)
    (sent,) = gateway.headers
    assert sent["authorization"] == "Bearer device-key"
    assert "local-secret" not in json.dumps(sent)
    assert not {"cookie", "x-mine", "x-maas-cloud"} & set(sent)
    assert answer.headers["x-request-id"] == "req-1"
    assert "x-internal" not in answer.headers


async def test_a_stream_is_passed_on_as_it_comes(bench, gateway):
    body = {"model": "tiny", "messages": LONG, "stream": True}
    async with bench.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert by(answer) == (200, "cloud")
        text = "".join([chunk async for chunk in answer.aiter_text()])
    assert text.count("data: ") == 4
    assert text.endswith("data: [DONE]\n\n")


async def test_a_client_that_leaves_ends_the_cloud_s_answer(bench, gateway):
    messages = [{"role": "user", "content": "hang" * 30}]
    body = {"model": "tiny", "messages": messages, "stream": True}
    async with bench.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        await anext(answer.aiter_bytes())
    await asyncio.to_thread(gateway.wait, lambda: gateway.num_left == 1, "the client to be gone")


async def test_a_cloud_that_breaks_off_is_not_taken_for_its_end(bench, gateway):
    messages = [{"role": "user", "content": "die" * 40}]
    answer = await bench.chat(messages=messages, stream=True)
    assert by(answer) == (200, "cloud")
    assert '"word": "from"' in answer.text
    assert "engine_unreachable" in answer.text
    assert "[DONE]" not in answer.text
    assert len(gateway.requests) == 1


async def test_a_cloud_that_says_nothing_is_as_one_that_is_away(bench, gateway):
    refused = await bench.chat(messages=[{"role": "user", "content": "mute" * 30}], stream=True)
    assert by(refused) == (503, "device")
    assert "broke off" in error_of(refused)["message"]
    bench.batteries[0] = LOW
    messages = [{"role": "user", "content": "mute"}]
    answer = await bench.chat(messages=messages, stream=True)
    assert by(answer) == (200, "device")
    assert answer.text.endswith("data: [DONE]\n\n")
    assert len(gateway.requests) == 2


@pytest.mark.parametrize("status", [400, 403, 429, 500, 503])
async def test_the_cloud_s_errors_are_passed_on(bench, gateway, status):
    gateway.status = status
    answer = await bench.chat(messages=LONG)
    assert by(answer) == (status, "cloud")
    assert error_of(answer)["code"] == "made_up"


async def test_a_cloud_that_is_away_is_an_error_that_says_why_it_was_needed(bench, gateway):
    gateway.stop()
    for more in ({}, {"stream": True}):
        answer = await bench.chat(QUEUE if more else None, messages=LONG, **more)
        assert by(answer) == (503, "device")
        assert "longer than this device's context" in error_of(answer)["message"]
        assert "cannot be reached" in error_of(answer)["message"]
        assert answer.headers["retry-after"]
    assert bench.queue.ids() == []


async def test_a_retired_device_says_so_itself_and_keeps_nothing_for_later(bench, gateway):
    gateway.keys.clear()
    for more in ({}, {"stream": True}, {"headers": QUEUE}):
        answer = await bench.chat(messages=LONG, **more)
        assert by(answer) == (503, "device")
        assert "refuses this device's key: it was retired" in error_of(answer)["message"]
    assert bench.queue.ids() == []
    bench.batteries[0] = LOW
    assert by(await bench.chat()) == (200, "device")


async def test_a_cloud_that_is_off_is_an_error_where_it_is_asked_for(bench):
    bench.cloud.model = None
    answer = await bench.chat({"x-maas-cloud": "always"})
    assert by(answer) == (503, "device")
    assert "no fallback model" in error_of(answer)["message"]
    assert by(await bench.chat(messages=LONG)) == (400, "device")


@pytest.mark.parametrize("is_there", [False, True])
async def test_a_request_can_wait_for_the_cloud(bench, gateway, is_there):
    if is_there:
        gateway.status = 503
    else:
        gateway.stop()
    answer = await bench.chat(QUEUE, messages=LONG)
    assert by(answer) == (202, "device")
    kept = answer.json()
    assert (kept["object"], kept["status"]) == ("queued_request", "queued")
    shown = (await bench.client.get(f"/v1/queued_requests/{kept['id']}")).json()
    assert (shown["status"], shown["response"]) == ("queued", None)
    assert "context" in shown["reason"]
    listed = (await bench.client.get("/v1/queued_requests")).json()
    assert [item["id"] for item in listed["data"]] == [kept["id"]] == [listed["last_id"]]
    await bench.chat(QUEUE, messages=LONG)
    full = await bench.chat(QUEUE, messages=LONG)
    assert (full.status_code, error_of(full)["code"]) == (429, "rate_limit_exceeded")
    assert (await bench.client.delete(f"/v1/queued_requests/{kept['id']}")).json()["deleted"]
    gone = await bench.client.get(f"/v1/queued_requests/{kept['id']}")
    assert (gone.status_code, error_of(gone)["code"]) == (404, "not_found")


async def test_what_the_device_answers_is_never_queued(bench, gateway):
    gateway.stop()
    assert by(await bench.chat(QUEUE)) == (200, "device")
    assert bench.queue.ids() == []


async def test_a_bundle_is_exchanged_under_requests_that_keep_theirs(bench):
    bench.engine.holds = True
    held = asyncio.create_task(bench.chat({"x-maas-cloud": "never"}))
    await bench.engine.is_asked.wait()
    new = FakeEdgeEngine()
    old = bench.serving.exchange(Served("tiny", new, bench.served.tokenizer, bench.served.template))
    leaving = asyncio.create_task(old.retire(30))
    assert by(await bench.chat()) == (200, "device")
    assert (new.num_asked, bench.engine.is_closed) == (1, False)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    # A retirement that is cut short ends what still runs, and says so.
    assert bench.engine.is_closed
    assert by(await held) == (500, "device")
    assert "the engine was closed" in error_of(await held)["message"]


async def test_a_bundle_that_nobody_uses_is_closed_at_once(bench):
    await bench.serving.exchange(None).retire(30)
    assert bench.engine.is_closed
