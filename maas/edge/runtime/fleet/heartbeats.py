"""The conversation with the gateway: at its pace, and at an ever slower one while it is away."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable

from maas.core.errors import MaasError
from maas.edge.runtime.fleet.gateway import Gateway
from maas.edge.runtime.fleet.state import Contact, StateFile
from maas.edge.runtime.fleet.wire import HeartbeatAnswer
from maas.protocol.devices import HeartbeatRequest

log = logging.getLogger(__name__)

MIN_HEARTBEAT_S = 0.05
MAX_HEARTBEAT_S = 3600.0
_MAX_BACKOFF_S = 300.0
_JITTER = 0.2
# A contact is written when it says something new, or so long after the last that was.
_CONTACT_EVERY_S = 60.0


def next_delay(heartbeat_s: float, num_failures: int, draw: Callable[[], float]) -> float:
    """Return the seconds to the next heartbeat.

    Args:
        heartbeat_s: The gateway's pace.
        num_failures: Heartbeats in a row that had no answer.
        draw: Gives a number from 0 to 1: a thousand devices must not come at once.
    """
    pace = min(max(heartbeat_s, MIN_HEARTBEAT_S), MAX_HEARTBEAT_S)
    slowest = max(pace, _MAX_BACKOFF_S)
    delay = min(pace * 2.0 ** min(num_failures, 32), slowest)
    return delay * (1 - _JITTER + 2 * _JITTER * draw())


class Heartbeats:
    """Tells the gateway of this device, for ever.

    Args:
        gateway: Is told.
        store: Knows what was not told yet.
        report: Makes what is told.
        on_answer: Given what the gateway says.
    """

    def __init__(
        self,
        gateway: Gateway,
        store: StateFile,
        report: Callable[[], HeartbeatRequest],
        on_answer: Callable[[HeartbeatAnswer], None],
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._report = report
        self._on_answer = on_answer
        self._is_due = asyncio.Event()
        contact = store.state.contact
        self._heartbeat_s = contact.heartbeat_s if contact else HeartbeatAnswer().heartbeat_s
        self._num_failures = 0

    def hurry(self) -> None:
        """Have the next one now."""
        self._is_due.set()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            self._is_due.clear()
            try:
                await self.beat()
                self._num_failures = 0
            except MaasError as error:
                if self._num_failures == 0:
                    log.warning("no heartbeat: %s", error.message)
                self._num_failures += 1
            except Exception:
                # Whatever it is, the next one may be answered.
                log.exception("a heartbeat failed")
                self._num_failures += 1
            delay = next_delay(self._heartbeat_s, self._num_failures, random.random)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._is_due.wait()

    async def beat(self) -> None:
        """Tell once, and do as the answer says.

        Raises:
            MaasError: There was no answer that can be read.
        """
        told = self._report()
        answer = await self._gateway.heartbeat(told)
        self._store.was_told(told.update, told.errors)
        self._heartbeat_s = answer.heartbeat_s
        self._remember(answer)
        self._on_answer(answer)

    def _remember(self, answer: HeartbeatAnswer) -> None:
        now, last = time.time(), self._store.state.contact
        new = Contact(now, answer.fallback_model, answer.heartbeat_s, answer.desired)
        said = (new.fallback_model, new.heartbeat_s, new.desired)
        is_known = last is not None and said == (
            *(last.fallback_model, last.heartbeat_s, last.desired),
        )
        if last is None or not is_known or not 0 <= now - last.at < _CONTACT_EVERY_S:
            self._store.change(contact=new)
