"""Where heartbeats wait for the store: those that came meanwhile are written in one transaction.

One thread of its own: it waits for other writers, and nobody else waits for it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from maas.core.errors import MaasError, StoreUnavailable, Unavailable
from maas.store.heartbeats import Beat, Orders

log = logging.getLogger(__name__)

MAX_BATCH = 64
MAX_WAITING = 4096

Take = Callable[[Sequence[Beat]], list[Orders | MaasError]]
_Waiting = tuple[Beat, "asyncio.Future[Orders]"]


class HeartbeatDesk:
    """Takes heartbeats as they come.

    Args:
        take: Writes some down, in a thread.
    """

    def __init__(self, take: Take) -> None:
        self._take = take
        self._waiting: list[_Waiting] = []
        self._work: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="heartbeats")

    async def take(self, beat: Beat) -> Orders:
        """Return what a device hears, once its heartbeat is written down.

        Raises:
            MaasError: It was not.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable("too many heartbeats wait for the store; try again")
        answer: asyncio.Future[Orders] = asyncio.get_running_loop().create_future()
        self._waiting.append((beat, answer))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            await self._write(batch)

    async def _write(self, batch: Sequence[_Waiting]) -> None:
        beats = [beat for beat, _ in batch]
        try:
            loop = asyncio.get_running_loop()
            taken = await loop.run_in_executor(self._thread, self._take, beats)
        except StoreUnavailable as error:
            taken = [error] * len(batch)
        except Exception as error:
            if len(batch) > 1:
                # One that cannot be written must not keep the others from it.
                for one in batch:
                    await self._write([one])
                return
            if not isinstance(error, MaasError):
                log.exception("a heartbeat of key %s cannot be taken", beats[0].key_id)
            taken = [error if isinstance(error, MaasError) else MaasError("unexpected")]
        for (_, answer), orders in zip(batch, taken, strict=True):
            if answer.done():  # its client has left
                continue
            if isinstance(orders, MaasError):
                answer.set_exception(orders)
            else:
                answer.set_result(orders)
