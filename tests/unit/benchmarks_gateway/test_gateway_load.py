"""The load generator against the mock engine, each as the other sees it."""

import asyncio
import json
import re

import pytest

from benchmarks.gateway.load import Load, is_whole, request_bytes, run_load
from benchmarks.gateway.mock_engine import MODEL, NUM_CHUNKS, WHOLE, MockEngine, Steps


@pytest.fixture
async def port():
    steps = Steps()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: MockEngine(steps), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.sleep(0.02)  # connections see that their clients left


async def test_every_stream_has_every_chunk(port):
    request = request_bytes(port, model=MODEL, key=None, is_stream=True)
    tally = await run_load(port, request, Load(True, 4, 0.01))
    assert (tally.num_requests, tally.num_errors) == (4, 0)
    # The role, then the tokens.
    assert tally.num_chunks == 4 * (NUM_CHUNKS + 1)
    assert tally.num_reads >= tally.num_chunks * 0.9


async def test_whole_answers_are_counted_once(port):
    request = request_bytes(port, model=MODEL, key="k", is_stream=False)
    tally = await run_load(port, request, Load(False, 2, 0.05))
    assert tally.num_requests >= 2
    assert tally.num_errors == tally.num_chunks == 0


async def test_no_more_is_asked_than_wanted(port):
    request = request_bytes(port, model=MODEL, key="k", is_stream=False)
    tally = await run_load(port, request, Load(False, 8, 60, max_requests=21))
    assert tally.num_asked == tally.num_requests == 21


async def test_refusals_are_errors():
    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    tally = await run_load(port, b"GET / HTTP/1.1\r\n\r\n", Load(False, 3, 0.05))
    server.close()
    await asyncio.sleep(0.02)
    assert (tally.num_requests, tally.num_errors) == (0, 3)
    assert "401" in tally.error


def test_answers_cut_short_are_not_whole():
    assert is_whole(WHOLE)
    assert not is_whole(WHOLE[:-1])
    assert not is_whole(b"HTTP/1.1 200 OK\r\n\r\n5\r\nhello\r\n")


async def test_stream_over_the_wire_is_what_openai_clients_read(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_bytes(port, model=MODEL, key=None, is_stream=True))
    raw = await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    chunks = [json.loads(found) for found in re.findall(rb"data: (\{.*\})", raw)]
    words = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert words == " word" * NUM_CHUNKS
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
