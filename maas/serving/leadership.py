"""Leading: one controller acts at a time, and only while its lease is surely its own."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from maas.core.errors import MaasError

log = logging.getLogger(__name__)

_RENEWALS_PER_TTL = 3


async def lead(
    acquire: Callable[[], bool], work: Callable[[], Awaitable[None]], *, ttl_s: float
) -> None:
    """Run ``work`` whenever this process leads, for ever; cancel it the moment it may not.

    The lease is renewed beside the work, so a pass that takes longer than the lease loses
    nothing. A call already handed to a thread when the lease is lost runs to its end; nothing is
    begun after it.

    Args:
        acquire: Takes or renews the lease, in a thread; false where another one holds it. The
            store may be away for a moment: a ``MaasError`` is no answer.
        work: Acts until cancelled. Called anew each time the lease is won.
        ttl_s: How long one renewal lasts.
    """
    pause_s = ttl_s / _RENEWALS_PER_TTL
    while True:
        expires = time.monotonic() + ttl_s
        if await _ask(acquire, timeout_s=ttl_s):
            working = asyncio.ensure_future(work())
            try:
                await _keep(acquire, working, ttl_s=ttl_s, expires=expires)
            finally:
                working.cancel()
                await asyncio.wait({working})
            log.warning("leadership is lost: another controller acts, or the store is away")
        await asyncio.sleep(pause_s)


async def _ask(acquire: Callable[[], bool], *, timeout_s: float) -> bool | None:
    """Return whether the lease is held; none where nobody can tell."""
    try:
        # Not wait_for: in Python 3.11 it swallows a cancellation that meets the answer.
        async with asyncio.timeout(timeout_s):
            return await asyncio.to_thread(acquire)
    except TimeoutError:
        log.warning("the store did not answer for %.1f s", timeout_s)
    except MaasError as error:
        log.warning("the lease could not be renewed: %s", error.message)
    return None


async def _keep(
    acquire: Callable[[], bool], working: asyncio.Future[None], *, ttl_s: float, expires: float
) -> None:
    """Return when the lease is lost or may be. What the work raises is raised here."""
    while (left_s := expires - time.monotonic()) > 0:
        await asyncio.wait({working}, timeout=min(ttl_s / _RENEWALS_PER_TTL, left_s))
        if working.done():
            working.result()
            return
        # Counted from before the question: the store's own count starts later.
        asked = time.monotonic()
        if asked >= expires:
            return
        is_held = await _ask(acquire, timeout_s=expires - asked)
        if is_held:
            expires = asked + ttl_s
        elif is_held is False:
            return
