"""Sends what waits in the offline queue, in order, when the gateway answers again."""

import asyncio
import contextlib
import logging

from maas.core.errors import AuthenticationFailed, EngineUnreachable, InvalidRequest
from maas.edge.runtime.server.cloud import Cloud, read_whole
from maas.edge.runtime.server.counters import Counters
from maas.edge.runtime.server.offline import OfflineQueue, QueuedRequest
from maas.protocol.errors import encode_error

log = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 8 << 20
# None that is tried again: it would be as long, and be charged again.
_TOO_LONG = 413
_IDLE_S = 30.0
_MAX_TRIES = 3
# The gateway is there and says: later.
_LATER = frozenset({408, 425, 429, 502, 503, 504})
_MAX_LATER = 5
# A gateway that has no time for anybody is not asked all of them in each round.
_MAX_PASSED = 20


class Sender:
    """Sends one request after the other.

    One that is told ``later`` again and again lets the next one pass, and is tried again before
    it in the next round.

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
        self._laters: dict[str, int] = {}
        self._passed: set[str] = set()

    def hurry(self) -> None:
        """Try now: the gateway answered, or there is something new."""
        self._is_due.set()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            self._is_due.clear()
            try:
                await self.send_all()
            except Exception:
                # A full disk, say: what waits, waits on.
                log.exception("the offline queue stopped")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_IDLE_S):
                    await self._is_due.wait()

    async def send_all(self) -> None:
        """Send what waits, until the gateway is away or says: later."""
        self._passed.clear()
        while self._cloud.model is not None and await self._send_next():
            pass

    async def _send_next(self) -> bool:
        """Send the oldest; say whether the next one may follow at once."""
        request = await asyncio.to_thread(self._queue.take, self._passed)
        if request is None:
            return False
        try:
            status, body, upstream_id = await self._ask(request)
            if self._is_to_be_tried_again(request, status):
                self._queue.put_back(request.id)
                return self._lets_pass(request)
            await asyncio.to_thread(self._queue.answer, request.id, status, body, upstream_id)
        except (EngineUnreachable, AuthenticationFailed) as error:
            log.info("%s waits on: %s", request.id, error.message)
            self._queue.put_back(request.id)
            return False
        except BaseException:
            self._queue.put_back(request.id)
            raise
        self._tries.pop(request.id, None)
        self._laters.pop(request.id, None)
        self._counters.num_fallbacks += 1
        return True

    async def _ask(self, request: QueuedRequest) -> tuple[int, bytes, str | None]:
        try:
            once = f"{request.id} {request.created_at}"
            async with self._cloud.ask(request.path, request.body, once=once) as answer:
                body = await read_whole(answer, MAX_ANSWER_BYTES)
                upstream_id = answer.headers.get("x-request-id")
                if body is None:
                    message = f"the answer has over {MAX_ANSWER_BYTES} bytes: too long to be kept"
                    status = answer.status if answer.status >= 400 else _TOO_LONG
                    return status, _error(message, "answer_too_long"), upstream_id
                return answer.status, body, upstream_id
        except InvalidRequest as error:
            return 400, _error(error.message, error.code), None

    def _is_to_be_tried_again(self, request: QueuedRequest, status: int) -> bool:
        if status in _LATER:
            self._laters[request.id] = self._laters.get(request.id, 0) + 1
            return True
        self._laters.pop(request.id, None)
        if status < 500:
            return False
        self._tries[request.id] = self._tries.get(request.id, 0) + 1
        return self._tries[request.id] < _MAX_TRIES

    def _lets_pass(self, request: QueuedRequest) -> bool:
        if self._laters.get(request.id, 0) < _MAX_LATER or len(self._passed) >= _MAX_PASSED:
            return False
        self._passed.add(request.id)
        return True


def _error(message: str, code: str) -> bytes:
    return encode_error(message, kind="invalid_request_error", code=code)
