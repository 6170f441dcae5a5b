"""Sends what waits in the offline queue, in order, when the gateway answers again."""

import asyncio
import contextlib
import logging

from maas.core.errors import EngineUnreachable, InvalidRequest
from maas.edge.runtime.server.cloud import Cloud, read_whole
from maas.edge.runtime.server.counters import Counters
from maas.edge.runtime.server.offline import OfflineQueue, QueuedRequest
from maas.protocol.errors import encode_error

log = logging.getLogger(__name__)

_IDLE_S = 30.0
_MAX_TRIES = 3
# The gateway is there and says: later.
_LATER = frozenset({408, 425, 429, 502, 503, 504})


class Sender:
    """Sends one request after the other.

    Args:
        queue: What waits.
        cloud: Where to.
        counters: Count.
    """

    def __init__(self, queue: OfflineQueue, cloud: Cloud, counters: Counters) -> None:
        self._queue = queue
        self._cloud = cloud
        self._counters = counters
        self._is_due = asyncio.Event()
        self._tries: dict[str, int] = {}

    def hurry(self) -> None:
        """Try now: the gateway answered, or there is something new."""
        self._is_due.set()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            self._is_due.clear()
            try:
                while self._cloud.model is not None and await self._send_next():
                    pass
            except Exception:
                # A full disk, say: what waits, waits on.
                log.exception("the offline queue stopped")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_IDLE_S):
                    await self._is_due.wait()

    async def _send_next(self) -> bool:
        """Send the oldest; say whether the next one may follow at once."""
        request = await asyncio.to_thread(self._queue.take)
        if request is None:
            return False
        try:
            status, body, upstream_id = await self._ask(request)
        except InvalidRequest as error:
            status, upstream_id = 400, None
            body = encode_error(error.message, kind="invalid_request_error", code=error.code)
        except EngineUnreachable as error:
            log.info("%s waits on: %s", request.id, error.message)
            self._queue.put_back(request.id)
            return False
        except BaseException:
            self._queue.put_back(request.id)
            raise
        if self._is_to_be_tried_again(request, status):
            self._queue.put_back(request.id)
            return False
        await asyncio.to_thread(self._queue.answer, request.id, status, body, upstream_id)
        self._tries.pop(request.id, None)
        self._counters.num_fallbacks += 1
        return True

    async def _ask(self, request: QueuedRequest) -> tuple[int, bytes, str | None]:
        async with self._cloud.ask(request.path, request.body) as answer:
            return answer.status, await read_whole(answer), answer.headers.get("x-request-id")

    def _is_to_be_tried_again(self, request: QueuedRequest, status: int) -> bool:
        if status in _LATER:
            return True
        if status < 500:
            return False
        self._tries[request.id] = self._tries.get(request.id, 0) + 1
        return self._tries[request.id] < _MAX_TRIES
