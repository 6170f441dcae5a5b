"""The load generator against a small server of known speed, and its arithmetic by hand."""

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from benchmarks.gpu.load import (
    StreamTrace,
    Target,
    WaveSize,
    completion_tokens,
    run_wave,
    summarize,
)

STEP_S = 0.01


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def usage_event(num_tokens: int) -> bytes:
    return event({"choices": [], "usage": {"completion_tokens": num_tokens}})


class FakeServer:
    """Streams one token every ``STEP_S``, each event cut in two reads."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, object]] = []
        self.keys: list[str | None] = []
        self.num_missing = 0
        self.status = 200

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization"))
        if self.status != 200:
            return web.Response(status=self.status, text="no")
        response = web.StreamResponse()
        await response.prepare(request)
        num_tokens = body["max_tokens"] - self.num_missing
        for number in range(num_tokens):
            data = event({"choices": [{"text": f"w{number}"}], "usage": None})
            await response.write(data[:9])
            await response.write(data[9:])
            await asyncio.sleep(STEP_S)
        await response.write(usage_event(num_tokens) + b"data: [DONE]\n\n")
        return response


@pytest.fixture
async def server() -> AsyncIterator[tuple[FakeServer, str]]:
    fake, app = FakeServer(), web.Application()
    app.router.add_post("/v1/completions", fake.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield fake, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_wave_measures_the_speed_the_server_has(server: tuple[FakeServer, str]) -> None:
    _, url = server
    size = WaveSize(num_streams=4, prompt_len=10, output_len=20, vocab_size=100)
    async with aiohttp.ClientSession() as client:
        result = await run_wave(client, Target("fake", url, ("m",)), size, seed="s")
    assert result.decode_tokens_s is not None
    # The sleeps are a floor: it cannot be faster than 4 tokens a step.
    assert 0.3 < result.decode_tokens_s / (4 / STEP_S) < 1.1
    assert 10 < result.mean_context < 30
    assert result.p95_s >= 20 * STEP_S


async def test_streams_take_models_in_turn_and_never_send_the_same_prompt(
    server: tuple[FakeServer, str],
) -> None:
    fake, url = server
    size = WaveSize(num_streams=4, prompt_len=16, output_len=2, vocab_size=1000)
    async with aiohttp.ClientSession() as client:
        for seed in ("0", "1"):
            await run_wave(client, Target("fake", url, ("a", "b"), key="k"), size, seed=seed)
    assert sorted(str(body["model"]) for body in fake.bodies) == ["a"] * 4 + ["b"] * 4
    assert len({json.dumps(body["prompt"]) for body in fake.bodies}) == 8
    assert set(fake.keys) == {"Bearer k"}


async def test_a_request_has_only_fields_the_gateway_lets_through(
    server: tuple[FakeServer, str],
) -> None:
    fake, url = server
    size = WaveSize(num_streams=1, prompt_len=4, output_len=2, vocab_size=100)
    async with aiohttp.ClientSession() as client:
        await run_wave(client, Target("fake", url, ("m",)), size, seed="s")
    standard = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}
    assert set(fake.bodies[0]) == standard


async def test_a_stream_shorter_than_asked_for_is_an_error(server: tuple[FakeServer, str]) -> None:
    fake, url = server
    fake.num_missing = 1
    size = WaveSize(num_streams=2, prompt_len=4, output_len=5, vocab_size=100)
    async with aiohttp.ClientSession() as client:
        with pytest.raises(ValueError, match="2 streams had 4 tokens"):
            await run_wave(client, Target("fake", url, ("m",)), size, seed="s")


async def test_a_refusal_is_an_error_that_names_the_server(server: tuple[FakeServer, str]) -> None:
    fake, url = server
    fake.status = 429
    size = WaveSize(num_streams=1, prompt_len=4, output_len=5, vocab_size=100)
    async with aiohttp.ClientSession() as client:
        with pytest.raises(ValueError, match="fake answered 429: no"):
            await run_wave(client, Target("fake", url, ("m",)), size, seed="s")


def trace(first: float, num_tokens: int, *, step_s: float = 1.0) -> StreamTrace:
    """One token every ``step_s`` from ``first`` on; the end of the stream with the last."""
    times = [first + i * step_s for i in range(num_tokens)]
    num_lines = [2] * (num_tokens - 1) + [2 + 4]
    return StreamTrace(0.0, times, num_lines, ended=times[-1], num_tokens=num_tokens)


def test_decode_speed_is_taken_while_every_stream_decodes() -> None:
    # Together from second 5 (the late one's first token) to 11 (the early one's last).
    traces = [trace(1.0, 11), trace(5.0, 11)]
    result = summarize(traces, prompt_len=100, seconds=20.0, client_cpu=0.1)
    assert result.decode_tokens_s == pytest.approx(2.0)
    assert result.output_tokens_s == pytest.approx(22 / 20)
    assert result.first_token_s == pytest.approx(3.0)
    # At second 5: 5 and 1 tokens; at second 11: 11 and 7.
    assert result.mean_context == pytest.approx(100 + (3 + 9) / 2)


def test_streams_that_never_decode_together_have_no_decode_speed() -> None:
    result = summarize([trace(1.0, 3), trace(10.0, 3)], prompt_len=1, seconds=20.0, client_cpu=0.1)
    assert result.decode_tokens_s is None


def test_several_tokens_in_one_event_are_counted_by_the_usage() -> None:
    coalesced = StreamTrace(0.0, [1.0, 2.0], [2, 2 + 4], ended=2.0, num_tokens=10)
    assert coalesced.tokens_until(1.0) == 5.0
    assert coalesced.tokens_until(2.0) == 10.0


def test_usage_is_read_from_the_end_of_a_stream() -> None:
    tail = b'"cut off"}\n\n' + usage_event(7) + b"data: [DONE]\n\n"
    assert completion_tokens(tail) == 7


def test_a_stream_that_ends_in_an_error_event_is_not_counted() -> None:
    with pytest.raises(ValueError, match="engine died"):
        completion_tokens(usage_event(3) + event({"error": {"message": "engine died"}}))
