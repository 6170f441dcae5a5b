"""Waiting for an engine to finish what it holds before it is stopped."""

import asyncio
import time
from collections.abc import Awaitable, Callable

# Gateways read leases every snapshot interval; only then do new requests stop coming.
ROUTES_CHANGE_S = 1.0
_POLL_S = 0.2


async def drain(
    look: Callable[[], Awaitable[int | None]],
    *,
    reports_load: bool,
    timeout_s: float,
    routes_change_s: float = ROUTES_CHANGE_S,
) -> None:
    """Return when the engine holds no request any more, at the latest after ``timeout_s``.

    Args:
        look: Returns how many requests it holds, running and waiting; none once it is broken.
        reports_load: Whether that number means anything. An engine that cannot tell gets the
            whole time: a running answer is not cut off because it cannot be seen.
        timeout_s: The longest wait.
        routes_change_s: Seconds in which gateways may still send requests.
    """
    deadline = time.monotonic() + timeout_s
    await asyncio.sleep(min(routes_change_s, timeout_s))
    while time.monotonic() < deadline:
        num_requests = await look()
        if num_requests is None or (reports_load and num_requests == 0):
            return
        await asyncio.sleep(_POLL_S)
