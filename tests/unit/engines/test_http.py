"""Requests to an engine that closes connections when it likes."""

import asyncio

import aiohttp
import pytest

from maas.core.errors import EngineUnreachable
from maas.engines.http import post

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def serve(num_answers: int) -> tuple[asyncio.Server, list[int]]:
    """Serve connections that give so many answers, then close when they are asked again."""
    connections: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(0)
        number = len(connections) - 1
        while await reader.readuntil(b"}"):
            if connections[number] == num_answers:
                break
            connections[number] += 1
            writer.write(ANSWER)
        writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0), connections


async def test_connection_that_was_closed_meanwhile_is_made_anew():
    server, connections = await serve(num_answers=1)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, aiohttp.ClientSession() as client:
        for _ in range(3):
            assert await post(client, url, {"a": 1}, timeout_s=5) == (200, "ok")
    assert connections == [1, 1, 1]


async def test_engine_that_closes_every_connection_is_unreachable():
    server, connections = await serve(num_answers=0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, aiohttp.ClientSession() as client:
        with pytest.raises(EngineUnreachable):
            await post(client, url, {"a": 1}, timeout_s=5)
    assert len(connections) == 2
