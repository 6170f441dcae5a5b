"""The gateway's answers come in time: a head in a time of its own, a body at some pace."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from maas.core.errors import EngineUnreachable
from maas.edge.runtime.server import cloud as cloud_module
from maas.edge.runtime.server.cloud import Cloud, read_whole
from tests.fakes.drip import Dripping, dripping

PATH = "/v1/chat/completions"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.fixture
def gateway() -> Iterator[Dripping]:
    with dripping() as running:
        yield running


@pytest.fixture
async def cloud(gateway: Dripping) -> AsyncIterator[Cloud]:
    async with aiohttp.ClientSession() as session:
        yield Cloud(session, gateway.url, "device-key")


async def ask(cloud: Cloud) -> bytes | None:
    async with cloud.ask(PATH, b"{}") as answer:
        return await read_whole(answer, 1000)


async def test_a_head_that_drips_is_given_up(gateway, cloud, monkeypatch):
    monkeypatch.setattr(cloud_module, "_MAX_HEAD_S", 0.3)
    gateway.whole = HEAD + b"X-Name: "
    with pytest.raises(EngineUnreachable, match="does not come in time"):
        async with asyncio.timeout(3):
            await ask(cloud)


async def test_a_body_that_drips_is_given_up(gateway, cloud, monkeypatch):
    monkeypatch.setattr(cloud_module, "_PATIENCE_S", 0.3)
    gateway.whole = HEAD + b"Content-Length: 900\r\n\r\n"
    with pytest.raises(EngineUnreachable, match="does not come in time"):
        async with asyncio.timeout(3):
            await ask(cloud)


async def test_a_body_at_a_good_pace_may_take_its_time(gateway, cloud, monkeypatch):
    monkeypatch.setattr(cloud_module, "_MAX_HEAD_S", 0.3)
    monkeypatch.setattr(cloud_module, "_PATIENCE_S", 0.3)
    monkeypatch.setattr(cloud_module, "_MIN_BYTES_PER_S", 10)
    gateway.whole = HEAD + b"Content-Length: 40\r\n\r\n"
    assert await ask(cloud) == b"x" * 40
