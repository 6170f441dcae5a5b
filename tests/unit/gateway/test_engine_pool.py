"""The raw HTTP client against servers that write exactly what a test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from maas.core.errors import Unavailable
from maas.gateway.relay.engine_http import MAX_BUFFERED_BYTES
from maas.gateway.relay.engine_pool import EnginePool, Origin, origin_of

REQUEST = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


@asynccontextmanager
async def engine(answer: Answer) -> AsyncIterator[Origin]:
    """Serve ``answer(reader, writer, number of the request)``; each request is read first."""
    num_requests = 0
    handlers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_requests
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            while not reader.at_eof():
                await reader.readuntil(b"{}")
                num_requests += 1
                await answer(reader, writer, num_requests)
                if writer.is_closing():
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            handlers.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield origin_of(f"http://127.0.0.1:{port}")
    finally:
        server.close()
        for task in list(handlers):
            task.cancel()
        await asyncio.sleep(0.02)


@asynccontextmanager
async def pool(**limits: float) -> AsyncIterator[EnginePool]:
    made = EnginePool(
        connect_timeout_s=limits.get("connect_timeout_s", 1.0),
        idle_timeout_s=limits.get("idle_timeout_s", 5.0),
        max_connections=int(limits.get("max_connections", 10)),
    )
    try:
        yield made
    finally:
        made.stop()
        await asyncio.sleep(0.02)


def writing(*parts: bytes, then_close: bool = False) -> Answer:
    async def answer(reader, writer, number) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.005)
        if then_close:
            writer.close()

    return answer


@pytest.mark.parametrize("cut", range(1, len(WHOLE)))
async def test_answers_are_whole_wherever_reads_are_cut(cut):
    async with engine(writing(WHOLE[:cut], WHOLE[cut:])) as origin, pool() as engines:
        response = await engines.post(origin, REQUEST)
        assert (response.status, await response.read()) == (200, b"hello")


async def test_chunks_come_one_by_one_and_without_their_framing():
    parts = (CHUNKED, b"3\r\nabc\r\n", b"2\r\nde\r\n", b"0\r\n\r\n")
    async with engine(writing(*parts)) as origin, pool() as engines:
        response = await engines.post(origin, REQUEST)
        assert [await response.readany() for _ in range(3)] == [b"abc", b"de", b""]


async def test_whole_answers_leave_their_connection_for_the_next_request():
    peers = set()

    async def answer(reader, writer, number):
        peers.add(writer.get_extra_info("peername"))
        writer.write(WHOLE)

    async with engine(answer) as origin, pool() as engines:
        for _ in range(3):
            response = await engines.post(origin, REQUEST)
            assert await response.read() == b"hello"
            response.close()
    assert len(peers) == 1


async def test_answer_that_was_not_read_to_its_end_closes_the_connection():
    has_closed = asyncio.Event()

    async def answer(reader, writer, number):
        writer.write(CHUNKED + b"3\r\nabc\r\n")
        assert await reader.read() == b""
        has_closed.set()

    async with engine(answer) as origin, pool() as engines:
        response = await engines.post(origin, REQUEST)
        response.close()
        await asyncio.wait_for(has_closed.wait(), 1)


async def test_kept_connection_that_closes_under_the_request_is_not_a_failure():
    async def answer(reader, writer, number):
        if number == 2:
            writer.close()
        else:
            writer.write(WHOLE)

    async with engine(answer) as origin, pool() as engines:
        for _ in range(2):
            response = await engines.post(origin, REQUEST)
            assert await response.read() == b"hello"
            response.close()


async def test_new_connection_that_closes_is_asked_once_only():
    seen = []

    async def answer(reader, writer, number):
        seen.append(number)
        writer.close()

    async with engine(answer) as origin, pool() as engines:
        with pytest.raises(ConnectionResetError):
            await engines.post(origin, REQUEST)
    assert seen == [1]


async def test_begun_answer_is_never_asked_for_again():
    seen = []

    async def answer(reader, writer, number):
        seen.append(number)
        writer.write(WHOLE if number == 1 else b"HTTP/1.1 200 OK\r\n")
        if number == 2:
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.close()

    async with engine(answer) as origin, pool() as engines:
        (await engines.post(origin, REQUEST)).close()
        with pytest.raises(ConnectionResetError):
            await engines.post(origin, REQUEST)
    assert seen == [1, 2]


async def test_body_without_a_length_ends_with_its_connection():
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    async with engine(writing(head, b"abc", then_close=True)) as origin, pool() as engines:
        response = await engines.post(origin, REQUEST)
        assert await response.read() == b"abc"


async def test_body_cut_short_is_an_error():
    async with engine(writing(WHOLE[:-2], then_close=True)) as origin, pool() as engines:
        response = await engines.post(origin, REQUEST)
        with pytest.raises(ConnectionResetError):
            await response.read()


async def test_interim_answers_are_not_the_answer():
    parts = (b"HTTP/1.1 103 Early Hints\r\n\r\n", WHOLE)
    async with engine(writing(*parts)) as origin, pool() as engines:
        response = await engines.post(origin, REQUEST)
        assert (response.status, await response.read()) == (200, b"hello")


@pytest.mark.parametrize(
    "noise", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
)
async def test_servers_that_speak_something_else_are_refused(noise):
    async with engine(writing(noise)) as origin, pool() as engines:
        with pytest.raises(ConnectionResetError):
            await (await engines.post(origin, REQUEST)).read()


async def test_bytes_nobody_asked_for_end_the_connection_and_reach_no_other_request():
    async def answer(reader, writer, number):
        writer.write(WHOLE)
        if number == 1:
            await asyncio.sleep(0.02)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    async with engine(answer) as origin, pool() as engines:
        (await engines.post(origin, REQUEST)).close()
        await asyncio.sleep(0.05)
        response = await engines.post(origin, REQUEST)
        assert await response.read() == b"hello"


async def test_silent_engine_is_given_up_within_the_idle_timeout():
    async def answer(reader, writer, number):
        writer.write(CHUNKED + b"3\r\nabc\r\n")
        await asyncio.sleep(10)

    async with engine(answer) as origin, pool(idle_timeout_s=0.1) as engines:
        response = await engines.post(origin, REQUEST)
        assert await response.readany() == b"abc"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response.readany(), 1)
        response.close()


async def test_slow_client_is_not_taken_for_a_silent_engine():
    parts = (CHUNKED + b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")

    async def answer(reader, writer, number):
        writer.write(parts[0])
        await asyncio.sleep(0.4)
        writer.write(parts[1])

    async with engine(answer) as origin, pool(idle_timeout_s=0.1) as engines:
        response = await engines.post(origin, REQUEST)
        found = []

        def take(part):
            found.append(part)
            response.set_paused(True)

        piping = asyncio.create_task(response.pipe_to(take))
        await asyncio.sleep(0.5)
        response.set_paused(False)
        await asyncio.wait_for(piping, 1)
    assert b"".join(found) == b"abcde"


async def test_refused_connection_is_an_os_error():
    async with engine(writing(WHOLE)) as origin:
        pass
    async with pool() as engines:
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await engines.post(origin, REQUEST)


async def test_connections_are_bounded():
    answer = writing(CHUNKED + b"3\r\nabc\r\n")
    async with engine(answer) as origin, pool(max_connections=1) as engines:
        await engines.post(origin, REQUEST)
        with pytest.raises(Unavailable):
            await engines.post(origin, REQUEST)


async def test_engine_that_writes_faster_than_it_is_read_is_held_back():
    num_written = 0

    async def answer(reader, writer, number):
        nonlocal num_written
        writer.write(CHUNKED)
        part = b"10000\r\n" + bytes(65536) + b"\r\n"
        while num_written < 64 * 2**20:
            writer.write(part)
            await writer.drain()
            num_written += 65536

    async with engine(answer) as origin, pool() as engines:
        response = await engines.post(origin, REQUEST)
        await asyncio.sleep(0.3)
        # What the kernel buffers comes on top of our own bound.
        assert num_written < 32 * 2**20
        assert len(await response.readany()) < MAX_BUFFERED_BYTES + 2**20
        response.close()


async def test_cancelled_request_closes_its_connection():
    has_closed = asyncio.Event()

    async def answer(reader, writer, number):
        assert await reader.read() == b""
        has_closed.set()

    async with engine(answer) as origin, pool() as engines:
        asking = asyncio.create_task(engines.post(origin, REQUEST))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(has_closed.wait(), 1)


async def test_sink_that_fails_ends_the_pipe():
    async def answer(reader, writer, number):
        writer.write(CHUNKED)
        await asyncio.sleep(0.05)
        writer.write(b"3\r\nabc\r\n")
        await asyncio.sleep(5)

    async with engine(answer) as origin, pool() as engines:
        response = await engines.post(origin, REQUEST)

        def take(part):
            raise ValueError("broken")

        told = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(response.pipe_to(take), 1)
        response.close()
    assert isinstance(told[0]["exception"], ValueError)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1", Origin("h", 1, False, "", "h:1")),
        ("https://h/base/", Origin("h", 443, True, "/base", "h")),
        ("http://[::1]:8000", Origin("::1", 8000, False, "", "[::1]:8000")),
        ("http://u:p@h", Origin("h", 80, False, "", "h")),
    ],
)
def test_origin_of_a_url(url, expected):
    assert origin_of(url) == expected
