"""Sends what is in the outbox, signed as Standard Webhooks says, so that OpenAI's SDKs check it.

Addresses are the tenants' own, so only public ones are asked, unless the operator allows others:
a gateway must not be made to talk to what stands beside it.
"""

import asyncio
import base64
import contextlib
import errno
import hashlib
import hmac
import ipaddress
import logging
import socket
from collections.abc import Callable
from typing import Any

import aiohttp

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


# An IPv4 address of any kind can be written in these (NAT64, 6to4, IPv4-compatible).
_TRANSLATED = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "2002::/16", "::/96"))


def is_public(address: str) -> bool:
    """Say whether an IP address is one of the public internet."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    is_translated = any(parsed in network for network in _TRANSLATED)
    return parsed.is_global and not parsed.is_multicast and not is_translated


def _public_socket(address: tuple[int, int, int, str, tuple[Any, ...]]) -> socket.socket:
    """Return a socket to an address, which is looked at in the form it is connected to.

    A host that is an address is never resolved, and may be written in ways that only become one
    on the way here (digits of another script).

    Raises:
        PermissionError: The address is not a public one.
    """
    family, kind, protocol, _, target = address
    if not is_public(str(target[0])):
        raise PermissionError(errno.EACCES, _FORBIDDEN)
    return socket.socket(family, kind, protocol)


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
        make_socket = None if self._allows_private else _public_socket
        connector = aiohttp.TCPConnector(socket_factory=make_socket, limit=16)
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
        # A host that no resolver takes is a ValueError, from deep below.
        except (OSError, ValueError, aiohttp.ClientError, MaasError) as failure:
            error = str(failure) or type(failure).__name__
        if error is not None:
            log.warning("webhook %s was not delivered: %s", delivery.id, error)
        await asyncio.to_thread(self._webhooks.finish, delivery.id, error)

    async def _send(self, client: aiohttp.ClientSession, delivery: Delivery) -> str | None:
        """Send once; return what went wrong."""
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
