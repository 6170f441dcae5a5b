"""The few HTTP calls adapters make, with the platform's errors."""

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp

from maas.core.errors import EngineError, EngineUnreachable
from maas.engines.contract import Task

_FAILURES = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
_PROBE_TIMEOUT = aiohttp.ClientTimeout(total=3.0)


async def answers(client: aiohttp.ClientSession, url: str) -> bool:
    """Say whether a GET of this URL succeeds; never raises."""
    try:
        async with client.get(url, timeout=_PROBE_TIMEOUT) as response:
            return response.status == 200
    except _FAILURES:
        return False


async def get_text(client: aiohttp.ClientSession, url: str) -> str:
    """Return the body of a GET.

    Raises:
        EngineUnreachable: No answer, or not a 200.
    """
    try:
        async with client.get(url, timeout=_PROBE_TIMEOUT) as response:
            if response.status != 200:
                raise EngineUnreachable(f"GET {url} answered {response.status}")
            return await response.text()
    except _FAILURES as error:
        raise EngineUnreachable(f"GET {url}: {error or type(error).__name__}") from error


async def get_json(client: aiohttp.ClientSession, url: str) -> Any:
    """Return the JSON body of a GET.

    Raises:
        EngineUnreachable: No answer, not a 200, or not JSON.
    """
    try:
        async with client.get(url, timeout=_PROBE_TIMEOUT) as response:
            if response.status != 200:
                raise EngineUnreachable(f"GET {url} answered {response.status}")
            return await response.json(content_type=None)
    except (*_FAILURES, ValueError) as error:
        raise EngineUnreachable(f"GET {url}: {error or type(error).__name__}") from error


async def post(
    client: aiohttp.ClientSession, url: str, body: Mapping[str, Any], *, timeout_s: float
) -> tuple[int, str]:
    """Send JSON, twice if need be; return status and body of the answer.

    Raises:
        EngineUnreachable: No answer.
    """
    timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def once() -> tuple[int, str]:
        async with client.post(url, json=body, timeout=timeout) as response:
            return response.status, await response.text()

    try:
        try:
            return await once()
        except aiohttp.ClientConnectorError:
            raise
        except aiohttp.ClientConnectionError:
            # A connection of before, which the engine closed as this was sent.
            return await once()
    except _FAILURES as error:
        raise EngineUnreachable(f"POST {url}: {error or type(error).__name__}") from error


async def probe(
    client: aiohttp.ClientSession, url: str, *, model: str, task: Task, timeout_s: float
) -> None:
    """Ask for one token (or one embedding), and throw the answer away.

    An engine whose core hangs still answers ``/health`` and still says that it is idle, because
    its front end does: only an answer shows that it computes.

    Raises:
        EngineUnreachable: No answer within ``timeout_s``.
    """
    if task == "embed":
        body: dict[str, Any] = {"model": model, "input": "a"}
        await post(client, f"{url}/v1/embeddings", body, timeout_s=timeout_s)
        return
    body = {"model": model, "prompt": "a", "max_tokens": 1}
    await post(client, f"{url}/v1/completions", body, timeout_s=timeout_s)


def refuse(action: str, status: int, body: str) -> EngineError:
    """Return the error for an answer that is not a success."""
    return EngineError(f"{action}: the engine answered {status}: {body[:500]}", status=status)
