"""Sends what is in the outbox, signed as Standard Webhooks says, so that OpenAI's SDKs check it.

Addresses are the tenants' own, so only public ones are asked, unless the operator allows others:
a gateway must not be made to talk to what stands beside it.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import ipaddress
import logging
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver

from maas.core.clock import Clock
from maas.core.errors import MaasError
from maas.store.webhooks import SECRET_PREFIX, Delivery, WebhookRepository

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_FORBIDDEN = (
    "the address is not a public one; the operator can allow it: gateway.webhooks_allow_private"
)


def signature(secret: str, delivery_id: str, timestamp: int, body: str) -> str:
    """Return the ``webhook-signature`` of a delivery (Standard Webhooks, HMAC-SHA256)."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{delivery_id}.{timestamp}.{body}".encode()
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def is_public(address: str) -> bool:
    """Say whether an IP address is one of the public internet."""
    return ipaddress.ip_address(address.partition("%")[0]).is_global


class _PublicResolver(AbstractResolver):
    """Resolves names to public addresses only: what is checked is what is connected to."""

    def __init__(self) -> None:
        self._resolver = DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        public = [result for result in found if is_public(result["host"])]
        if not public:
            raise OSError(_FORBIDDEN)
        return public

    async def close(self) -> None:
        await self._resolver.close()


class WebhookSender:
    """Takes deliveries out of the outbox and sends them, again and again where that fails.

    Args:
        webhooks: The outbox.
        clock: For timestamps.
        unseal: Opens a webhook's secret.
        allows_private: Whether addresses that are not public may be asked.
    """

    def __init__(
        self,
        webhooks: WebhookRepository,
        clock: Clock,
        *,
        unseal: Callable[[str], str],
        allows_private: bool,
    ) -> None:
        self._webhooks = webhooks
        self._clock = clock
        self._unseal = unseal
        self._allows_private = allows_private
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop; what is on its way is sent again by whoever goes on."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        resolver = None if self._allows_private else _PublicResolver()
        connector = aiohttp.TCPConnector(resolver=resolver, limit=16)
        async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as client:
            while True:
                await asyncio.sleep(_LOOK_EVERY_S)
                try:
                    due = await asyncio.to_thread(self._webhooks.claim)
                    await asyncio.gather(*(self._deliver(client, delivery) for delivery in due))
                except MaasError as error:
                    log.error("webhooks wait: %s", error.message)

    async def _deliver(self, client: aiohttp.ClientSession, delivery: Delivery) -> None:
        try:
            error = await self._send(client, delivery)
        except (OSError, aiohttp.ClientError, TimeoutError, MaasError) as failure:
            error = str(failure) or type(failure).__name__
        if error is not None:
            log.warning("webhook %s was not delivered: %s", delivery.id, error)
        await asyncio.to_thread(self._webhooks.finish, delivery.id, error)

    async def _send(self, client: aiohttp.ClientSession, delivery: Delivery) -> str | None:
        """Send once; return what went wrong."""
        if not self._allows_private and not _may_be_public(delivery.url):
            return _FORBIDDEN
        now = int(self._clock.now())
        secret = self._unseal(delivery.secret)
        headers = {
            "content-type": "application/json",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(secret, delivery.id, now, delivery.body),
        }
        # A redirect would lead past the check of the address.
        async with client.post(
            delivery.url, data=delivery.body, headers=headers, allow_redirects=False
        ) as answer:
            return None if 200 <= answer.status < 300 else f"it answered {answer.status}"


def _may_be_public(url: str) -> bool:
    """Say whether a URL's host is a name, or a public address: names are checked when resolved."""
    host = urlsplit(url).hostname or ""
    try:
        return is_public(host)
    except ValueError:
        return True
